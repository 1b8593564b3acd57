"""``hala init``: a site profile out of what this cluster says of itself, tried by a short job on its nodes."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from hala_hpc.cli import common
from hala_hpc.config import places
from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.schema import Recipe
from hala_hpc.pipeline import lookup
from hala_hpc.run.files import write_durably, write_new
from hala_hpc.slurm import nodetest, profile, survey
from hala_hpc.slurm.profile import Choice
from hala_hpc.slurm.survey import Cluster, Partition


@dataclass(frozen=True)
class Asking:
    """How what Slurm does not say is decided: by a person at this terminal, by taking the likeliest, or not at all."""

    terminal: bool
    likeliest: bool

    def one_of(self, what: str, option: str, given: str | None, names: Sequence[str]) -> str:
        """One of ``names``, of which the first is the likeliest. Raises HalaError."""
        if given is not None:
            if given not in names:
                raise HalaError(f"{option}: no {what} '{given}'", did_you_mean(given, names))
            return given
        if len(names) == 1 or self.likeliest:
            return names[0]
        if not self.terminal:
            raise HalaError(f"which {what}? {', '.join(names)}", f"{option} NAME, or --yes for {names[0]}")
        return str(click.prompt(what, type=click.Choice(list(names)), default=names[0], err=True))

    def text(self, what: str, given: str | None, likely: str) -> str:
        """A text, by default the likely one."""
        if given is not None or self.likeliest or not self.terminal:
            return likely if given is None else given
        return str(click.prompt(what, default=likely, err=True))


@dataclass(frozen=True)
class Wished:
    """What was given by an option; the rest is asked for, or the likeliest."""

    partition: str | None
    cpu_partition: str | None
    account: str | None
    root: Path | None
    serve: Path | None
    work: Path | None


@click.command()
@click.argument("name", required=False)
@click.option("--partition", help="Where workers go. [Slurm's default, or the one with the most GPUs]")
@click.option("--cpu-partition", help="Where work without GPUs goes. [one without GPUs]")
@click.option("--account", help="Who pays. [the only one, or the default]")
@click.option("--root", type=common.PathOption(), help="The folder of runs. [$HALA_RUNS, $SCRATCH/hala-runs or ./runs]")
@click.option("--serve", type=common.PathOption(), help="The environment with vLLM. [.envs/serve-cuda or -cpu]")
@click.option("--work", type=common.PathOption(), help="The environment for trainings. [.envs/work-cuda or -cpu]")
@click.option("--to", type=common.PathOption(), help="The file to write. [hpc/sites/NAME.yaml]")
@click.option("--yes", is_flag=True, help="Ask nothing: take the likeliest where there are several.")
@click.option("--force", is_flag=True, help="Replace a profile that is there.")
@click.option("--no-job", is_flag=True, help="Submit no test job: nothing is measured.")
@common.wait_option
@common.as_json
def init_command(
    name: str | None, to: Path | None, yes: bool, force: bool, no_job: bool, wait: int, json_: bool, **wishes: Any
) -> None:
    r"""Write a site profile for this cluster, from what Slurm says, and try it by a job of less than a minute.

    What cannot be known is asked at a terminal. The test job, one in each partition, measures on the nodes what leases
    and publishing stand on, and sets run.lease_seconds. Exit code 1 where it found something that has to be mended.

    \b
    hala init mycluster
    hala init mycluster --yes --partition gpu --account nlp --root '$SCRATCH/hala-runs'
    """
    if name is not None:
        _refuse_name(name)
    wished = Wished(**wishes)
    if wished.account is not None and (not wished.account.isprintable() or not wished.account.strip()):
        raise HalaError(f"--account: {wished.account!r} cannot be an account")
    folders = {"--root": wished.root, "--serve": wished.serve, "--work": wished.work, "--to": to and to.parent}
    for option, folder in folders.items():
        _refuse_file(option, folder)
    cluster = survey.look()
    name = cluster.name if name is None else name
    _refuse_name(name)
    target = to or _sites() / f"{name}.yaml"
    if target.exists() and (not force or not target.is_file()):
        raise HalaError(f"{target} exists", "--force replaces a profile; or give another NAME, or a file with --to")
    asking = Asking(sys.stdin.isatty() and not json_, yes)
    choice = _chosen(cluster, asking, name, wished)
    _write(target, profile.text(choice, cluster, (), "not yet"), force)
    choice = _accepted(choice, target)
    recipe = _recipe(target)
    measured, untested = _measured(recipe, no_job, float(wait))
    write_durably(target, profile.text(choice, cluster, measured, untested).encode())
    problems = [problem for each in measured for problem in each.problems]
    record: dict[str, object] = {
        "site": name,
        "profile": str(target.resolve()),
        "root": _recipe(target).run.root,
        "partition": choice.partition.name,
        "cpu_partition": choice.cpu_partition.name,
        "account": choice.account,
        "gpu_option": choice.gpu_option,
        "lease_seconds": _recipe(target).run.lease_seconds,
        "measured": [asdict(each) for each in measured],
        "untested": untested,
        "problems": problems,
        "next": _next(recipe, target, name, bool(untested)),
    }
    common.show(record, json_, _shown(record, measured), not problems)


def _refuse_name(name: str) -> None:
    if not profile.NAME.fullmatch(name):
        raise HalaError(f"NAME: {name!r} cannot be a profile's name", "letters, digits, -, _ and ., at most 60")


def _refuse_file(option: str, folder: Path | None) -> None:
    """Raises HalaError where a file stands where a folder is wanted, or above it."""
    if folder is not None:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise HalaError(f"{option}: {folder}: {there} is a file, not a folder")


def _sites() -> Path:
    """The folder that profiles are known by name in: the nearest one."""
    root = next(iter(places.hpc_roots()), None)
    if root is None:
        raise HalaError("there is no folder hpc/ here to write to", "run it in a checkout, or give a file with --to")
    return root / "sites"


def _chosen(cluster: Cluster, asking: Asking, name: str, wished: Wished) -> Choice:
    by_name = {partition.name: partition for partition in cluster.partitions}
    likely = cluster.of_gpus() or cluster.of_cpus()
    others = [partition for partition in cluster.partitions if partition not in likely]
    gpus = by_name[asking.one_of("partition", "--partition", wished.partition, _names([*likely, *others]))]
    without = asking.one_of(
        "partition without GPUs", "--cpu-partition", wished.cpu_partition, _names(cluster.of_cpus())
    )
    account = wished.account
    if account is None and cluster.accounts:
        first = [cluster.default_account] if cluster.default_account else []
        account = asking.one_of("account", "--account", None, list(dict.fromkeys([*first, *cluster.accounts])))
    elif account is not None and cluster.accounts:
        asking.one_of("account", "--account", account, cluster.accounts)
    place = asking.text("folder of runs", None if wished.root is None else _absolute(wished.root), _likely_root())
    device = "cuda" if gpus.shape(with_gpus=True) else "cpu"
    serve, work = (
        _absolute(folder) if folder is not None else _environment(name, device)
        for name, folder in (("serve", wished.serve), ("work", wished.work))
    )
    cache = _absolute(Path(os.environ["HF_HOME"])) if os.environ.get("HF_HOME") else None
    return Choice(name, place, gpus, by_name[without], account, serve, work, cache)


def _names(partitions: Sequence[Partition]) -> list[str]:
    return [partition.name for partition in partitions]


def _absolute(path: Path) -> str:
    """A path as a profile has it: of a dollar sign no variable is made."""
    return os.path.abspath(path).replace("$", "$$")  # noqa: PTH100 - a link in it stays: it may lead elsewhere later


def _likely_root() -> str:
    if runs := places.from_environment("HALA_RUNS"):
        return _absolute(Path(runs))
    for variable in ("SCRATCH", "WORK"):
        if os.access(os.environ.get(variable) or "", os.W_OK):
            return f"${variable}/hala-runs"
    return _absolute(Path("runs"))


def _environment(name: str, device: str) -> str:
    """Where ``make`` or ``hala env build`` puts it, whether it is there yet or not."""
    return _absolute(Path(".envs") / f"{name}-{device}")


def _write(target: Path, text: str, force: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if force:
        write_durably(target, text.encode())
        return
    try:
        write_new(target, text.encode())
    except FileExistsError as error:
        raise HalaError(f"{target} exists", "--force replaces it") from error


def _recipe(target: Path) -> Recipe:
    return lookup.load(None, str(target.resolve()), ("name=init",))


def _accepted(choice: Choice, target: Path) -> Choice:
    """The choice with the way to ask for GPUs that Slurm accepts. Raises HalaError; the profile stays, to be edited."""
    try:
        way, kind = profile.accepted(_recipe(target), choice.shape.gpu_type)
    except HalaError as error:
        hint = f"{target} is written: edit it, then `hala doctor --site {target}`"
        raise HalaError(f"Slurm would not take a worker: {error.message}", hint) from error
    return replace(choice, gpu_option=way, gpu_type=kind)


def _measured(recipe: Recipe, no_job: bool, wait: float) -> tuple[list[nodetest.Measured], str]:
    """What the test jobs measured, or why there is nothing."""
    if no_job:
        return [], "no test job was asked for"
    try:
        measured = nodetest.measure(recipe, wait, lambda line: click.echo(line, err=True))
    except HalaError as error:
        return [], str(error)
    return measured, "; ".join(f"{each.partition}: {each.untested}" for each in measured if each.untested)


def _next(recipe: Recipe, target: Path, name: str, untested: bool) -> list[str]:
    """The commands that follow, as a person types them."""
    known = lookup.profiles().get(name)
    site = name if known is not None and known.resolve() == target.resolve() else str(target.resolve())
    device = "cuda" if recipe.site.slurm.gpus_per_worker else "cpu"
    folder = recipe.site.environments["serve"].venv or ""
    built = Path(folder, "bin/python").exists()
    return [
        f"export HALA_SITE={site}",
        *([] if built else [f"hala env build serve-{device} --to {folder}"]),
        "hala doctor --job" if untested else "hala doctor",
        "hala submit jobs/demo/echo.yaml",
    ]


def _shown(record: dict[str, object], measured: Sequence[nodetest.Measured]) -> list[object]:
    lines: list[object] = [f"wrote {record['profile']}"]
    chosen = ("partition", "cpu_partition", "account", "root", "gpu_option", "lease_seconds")
    lines.append(common.facts([(key, escape(str("" if record[key] is None else record[key]))) for key in chosen]))
    for each in measured:
        lines.append(f"test job in {each.partition or 'the default partition'}:")
        lines += [f"  {line}" for line in each.lines()]
    if record["untested"]:
        lines.append(f"not tested on the nodes: {record['untested']}; to do it later: hala doctor --job")
    following = record["next"]
    assert isinstance(following, list)
    return [*lines, "next:", *(f"  {line}" for line in following)]
