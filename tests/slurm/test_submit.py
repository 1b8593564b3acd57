"""The sbatch text, compared with one that a person has read."""

import shlex
from pathlib import Path

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Container, Environment, Recipe, Run, Site, Slurm
from hala_hpc.slurm.launch import launch, require_environment
from hala_hpc.slurm.submit import preview

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

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/big/logs/%A_%a_%t_log.out --cpus-per-task=14 /envs/serve/bin/python -u -m submitit.core._submit /runs/big/logs
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
    for line in preview(asked, Path("/runs/r"), "serve", 2).splitlines():
        if evil in line:
            assert any(evil in word for word in shlex.split(line.removeprefix("#SBATCH "))), line
    asked.site.environments["serve"].variables = {"A=1; rm": "x"}
    with pytest.raises(HalaError, match="no name of an environment variable"):
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
    with pytest.raises(HalaError, match=r"no environment for the stage 'work' .*serve"):
        require_environment(site, "work")
