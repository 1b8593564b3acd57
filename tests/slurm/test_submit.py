"""The sbatch text, compared with one that a person has read."""

import shlex
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Container, Environment, Recipe, Run, Site, Slurm
from hala_hpc.slurm import nodetest
from hala_hpc.slurm.script import launch, require_environment
from hala_hpc.slurm.submit import free_gpus, preview

GOLDEN = r"""#!/bin/bash

# Parameters
#SBATCH --account=nlp
#SBATCH --array=0-63%64
#SBATCH --constraint='h100&nvlink'
#SBATCH --cpus-per-task=14
#SBATCH --gres=gpu:h100:4
#SBATCH --job-name=hala-big
#SBATCH --mail-type=END
#SBATCH --mem=204800M
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/big/logs/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=long
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
module load cuda/12.8 || exit 1
export HF_DATASETS_OFFLINE=1
export HF_HOME=/scratch/cache
export HF_HUB_OFFLINE=1
export NOTE='it'"'"'s $HOME'
export TRANSFORMERS_OFFLINE=1
ulimit -n 65536
# A worker that a signal killed starts again here; not where memory did not suffice.
srun() {
    local life=0 code size end log=/proc/$$/fd/1
    end=${SLURM_JOB_END_TIME:-$(($(date +%s) - SECONDS + 86400))}
    while :; do
        life=$((life + 1)) code=0 size=0
        if [ -f "$log" ]; then size=$(stat -L -c %s "$log") || size=0; fi
        HALA_LIFE=$life command srun "$@" || code=$?
        case $code in 134 | 135 | 137 | 139) ;; *) return "$code" ;; esac
        local said="hala: the worker was killed by signal $((code - 128))"
        if [ -f "$log" ] && tail -c "+$((size + 1))" "$log" | tail -c 65536 |
            grep -a -i -E '(slurmstepd|srun)[^ ]*: .*(oom.?kill|out of memory|memory limit)' >/dev/null; then
            echo "$said, for lack of memory: its job ends" >&2
        elif [ "$life" -gt 3 ]; then
            echo "$said, after 3 new starts: its job ends" >&2
        elif [ $((end - $(date +%s))) -lt 180 ]; then
            echo "$said, and the time of its job is nearly over: it ends" >&2
        else
            echo "$said; it starts again ($life of 3)" >&2
            continue
        fi
        return "$code"
    done
}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/big/logs/%A_%a_%t_log.out --cpus-per-task=14 /envs/serve/bin/python -u -m hala_hpc.worker.unpickle /runs/big/logs
"""  # noqa: E501


def recipe(**site: object) -> Recipe:
    return Recipe(name="big", run=Run(workers=64), site=Site(executor="slurm", **site))  # type: ignore[arg-type]


def test_golden_sbatch_text() -> None:
    slurm = Slurm(
        partition="gpu",
        account="nlp",
        qos="long",
        constraint="h100&nvlink",
        gpus_per_worker=4,
        gpu_type="h100",
        cpus_per_worker=14,
        mem_gb=200,
        minutes=1440,
        signal_seconds=120,
        extra={"mail_type": "END"},
    )
    environment = Environment(
        venv="/envs/serve", modules=["cuda/12.8"], setup=["ulimit -n 65536"], variables={"NOTE": "it's $HOME"}
    )
    asked = recipe(slurm=slurm, environments={"serve": environment}, cache="/scratch/cache", offline=True)
    assert preview(asked, Path("/runs/big"), "serve", 64) == GOLDEN


def test_nothing_of_a_recipe_reaches_the_shell_unquoted() -> None:
    evil = "x; touch /tmp/pwned #"
    environment = Environment(venv=f"/envs/{evil}", modules=[evil], variables={"A": evil})
    asked = recipe(slurm=Slurm(partition=evil), environments={"serve": environment})
    asked.name = evil
    for line in preview(asked, Path(f"/runs/{evil}"), "serve", 2).splitlines():
        if evil in line:
            assert any(evil in word for word in shlex.split(line.removeprefix("#SBATCH "))), line
    for line in nodetest._program(launch(asked.site, "serve")).splitlines():  # bash runs it on a node
        assert evil not in line or any(evil in word for word in shlex.split(line)), line
    asked.site.environments["serve"].variables = {"A=1; rm": "x"}
    with pytest.raises(HalaError, match="is not a name of an environment variable"):
        launch(asked.site, "serve")


def test_apptainer_wraps_python_and_pyxis_goes_to_srun() -> None:
    container = Container(runtime="apptainer", image="/images/vllm 1.sif", mounts=["/data:/data"])
    asked = recipe(slurm=Slurm(gpus_per_worker=1), environments={"serve": Environment(container=container)})
    assert launch(asked.site, "serve").python == ("apptainer exec --nv --bind /data:/data '/images/vllm 1.sif' python")
    container.runtime = "pyxis"
    started = launch(asked.site, "serve")
    assert started.python == "python"
    assert started.srun == ["--container-image=/images/vllm 1.sif", "--container-mounts=/data:/data"]


def test_an_environment_that_is_none_is_refused_before_anything_is_submitted(tmp_path: Path) -> None:
    site = Site(environments={"serve": Environment(venv=str(tmp_path))})
    with pytest.raises(HalaError, match=r"has no bin/python .*hala env build"):
        require_environment(site, "serve")
    with pytest.raises(HalaError, match=r"no environment 'work' .*serve"):
        require_environment(site, "work")


def lines(slurm: Slurm, workers: int = 1) -> list[str]:
    text = preview(recipe(slurm=slurm), Path("/runs/r"), "serve", workers)
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_a_persons_own_options_win_and_null_or_false_take_ours_away() -> None:
    extra = {
        "cpus-per-task": 16, "job_name": "mine", "requeue": False, "reservation": None, "exclusive": True,
        "open-file-limit": False, "time": "1-00", "mem-per-gpu": "8G", "comment": "of mine",
    }  # fmt: skip
    found = lines(Slurm(extra=extra, mem_gb=3))
    options = [line.partition("=")[0] for line in found]
    assert len(set(options)) == len(options)
    wanted = ["cpus-per-task=16", "job-name=mine", "exclusive", "time=1-00", "mem-per-gpu=8G", "comment='of mine'"]
    assert set(wanted) <= set(found)
    assert not {"requeue", "reservation", "mem", "open-file-limit"} & set(options)
    assert "job-name" not in [line.partition("=")[0] for line in lines(Slurm(extra={"job-name": None}))]
    command = preview(recipe(slurm=Slurm(extra=extra)), Path("/runs/r"), "serve", 1).splitlines()[-1]
    assert "--cpus-per-task=16" in command


@pytest.mark.parametrize(
    ("key", "value"),
    [("mail\n#SBATCH --x", 1), ("Mail", 1), ("a b", 1), ("exclude", "a\nb"), ("exclude", ["a"]), ("array", "0-9"),
     ("output", "x"), ("signal", None), ("nodes", False)],
)  # fmt: skip
def test_an_option_that_cannot_be_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(HalaError, match=r"site\.slurm\.extra\."):
        lines(Slurm(extra={key: value}))


@pytest.mark.parametrize(
    ("option", "kind", "wanted"),
    [
        ("gres", None, "gres=gpu:4"),
        ("gres", "a100", "gres=gpu:a100:4"),
        ("gpus", "a100", "gpus=a100:4"),
        ("gpus-per-node", None, "gpus-per-node=4"),
        ("gpus-per-task", "a100", "gpus-per-task=a100:4"),
    ],
)
def test_gpus_are_asked_for_as_the_site_demands(option: str, kind: str | None, wanted: str) -> None:
    found = lines(Slurm(gpus_per_worker=4, gpu_type=kind, gpu_option=option))  # type: ignore[arg-type]
    assert [line for line in found if "gpu" in line] == [wanted]


def test_gpus_and_cores_may_be_left_to_the_site_or_to_extra() -> None:
    assert not [line for line in lines(Slurm(gpus_per_worker=4, gpu_option="none")) if "gpu" in line]
    found = lines(Slurm(gpus_per_worker=4, gpu_type="a100", extra={"gpus-per-node": "a100:4"}))
    assert [line for line in found if "gpu" in line] == ["gpus-per-node=a100:4"]
    assert "cpus-per-task" not in preview(recipe(slurm=Slurm(cpus_per_worker=None)), Path("/runs/r"), "serve", 1)


def test_gpus_of_a_training_are_those_of_all_nodes_or_of_each_rank() -> None:
    from hala_hpc.slurm.script import gpus

    asked = Slurm(gpus_per_worker=8, nodes_per_worker=2, gpu_option="gpus")
    assert gpus(asked, 8) == {"gpus": "16"}
    asked.gpu_option = "gpus-per-task"
    assert gpus(asked, 4) == {"gpus-per-task": "2"}
    with pytest.raises(HalaError, match="8 GPUs cannot be shared out to 3 ranks"):
        gpus(asked, 3)


def test_no_memory_is_all_of_the_node() -> None:
    assert "mem=0" in lines(Slurm(mem_gb=0))
    assert not [line for line in lines(Slurm()) if line.startswith("mem")]


def test_gpus_of_live_local_workers_are_not_given_again() -> None:
    import itertools

    assert list(itertools.islice(free_gpus({0, 1, 3}), 3)) == [2, 4, 5]
