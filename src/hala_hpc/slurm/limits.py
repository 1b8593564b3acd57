"""What a cluster allows: the size of an array, jobs in the queue, and jobs of this user in the account asked for."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hala_hpc.config.schema import Slurm
from hala_hpc.slurm.commands import run, said

ASSOCIATIONS = ("Cluster", "Account", "Partition", "MaxSubmitJobs", "DefaultQOS")
QOS = ("Name", "MaxSubmitJobsPerUser", "MaxSubmitJobsPerAccount")


@dataclass(frozen=True)
class Limits:
    """Tasks in one array, jobs in the queue, jobs of this user (None: no limit)."""

    array: int
    jobs: int
    submit: int | None = None


@dataclass(frozen=True)
class Association:
    """What a user may do with an account on a cluster; ``partition`` is empty where it is any."""

    cluster: str
    account: str
    partition: str
    submit: int | None
    qos: str


def limits(asked: Slurm | None = None) -> Limits:
    """The limits of this cluster, and of this user for what is asked. Works without accounting.

    Raises HalaError where there is no Slurm.
    """
    config = parse_config(run("scontrol", "show", "config"))
    most = None
    if "limits" in config.get("AccountingStorageEnforce", ""):
        most = _of_user(config.get("ClusterName", ""), asked or Slurm())
    return Limits(int(config["MaxArraySize"]), int(config["MaxJobCount"]), most)


def _of_user(cluster: str, asked: Slurm) -> int | None:
    user = os.environ.get("USER", str(os.getuid()))
    account = asked.account or os.environ.get("SBATCH_ACCOUNT") or _told(user, "DefaultAccount")
    partition = asked.partition or os.environ.get("SBATCH_PARTITION", "")
    found = parse_associations(
        said("sacctmgr", "-nP", "show", "assoc", f"user={user}", f"format={','.join(ASSOCIATIONS)}").out
    )
    ours = association_of(found, cluster, account, partition)
    qos = asked.qos or os.environ.get("SBATCH_QOS") or (ours.qos if ours else "")
    of_qos = parse_qos(said("sacctmgr", "-nP", "show", "qos", f"format={','.join(QOS)}").out).get(qos)
    return min((one for one in (ours.submit if ours else None, of_qos) if one is not None), default=None)


def _told(user: str, what: str) -> str:
    return said("sacctmgr", "-nP", "show", "user", user, f"format={what}").out.strip()


def parse_config(text: str) -> dict[str, str]:
    """``scontrol show config`` as a mapping."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def parse_associations(text: str) -> list[Association]:
    """Lines of ``sacctmgr -nP show assoc`` in our format."""
    return [
        Association(cluster, account, partition, _number(submit), qos)
        for cluster, account, partition, submit, qos in _rows(text, len(ASSOCIATIONS))
    ]


def association_of(found: list[Association], cluster: str, account: str, partition: str) -> Association | None:
    """The one that Slurm goes by: of this cluster and account, and of the partition where it has one of its own."""
    ours = [one for one in found if one.cluster == cluster and one.account == account]
    return next((one for name in (partition, "") for one in ours if one.partition == name), None)


def parse_qos(text: str) -> Mapping[str, int | None]:
    """The smallest limit on jobs of each QOS, out of ``sacctmgr -nP show qos`` in our format."""
    return {
        name: min((one for one in map(_number, numbers) if one is not None), default=None)
        for name, *numbers in _rows(text, len(QOS))
    }


def _rows(text: str, columns: int) -> Iterator[list[str]]:
    rows = (line.split("|") for line in text.splitlines())
    return (row for row in rows if len(row) == columns)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
