"""What a cluster allows: the size of an array, jobs in the queue, and jobs of this user in the account asked for."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from hala_hpc.config.schema import Slurm
from hala_hpc.slurm.commands import rows, run, said

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
    """What a user may do with an account on a cluster."""

    submit: int | None
    qos: str


Associations = dict[tuple[str, str, str], Association]
"""By cluster, account and partition, which is empty for all partitions."""


def limits(slurm: Slurm | None = None) -> Limits:
    """The limits of this cluster, and of this user for what ``slurm`` asks for. Works without accounting.

    Raises HalaError where there is no Slurm.
    """
    config = parse_config(run("scontrol", "show", "config"))
    most = None
    if "limits" in config.get("AccountingStorageEnforce", ""):
        most = _of_user(config.get("ClusterName", ""), slurm or Slurm())
    return Limits(int(config["MaxArraySize"]), int(config["MaxJobCount"]), most)


def _of_user(cluster: str, slurm: Slurm) -> int | None:
    user = os.environ.get("USER", str(os.getuid()))
    account = slurm.account or os.environ.get("SBATCH_ACCOUNT") or _show("user", user, "format=DefaultAccount").strip()
    partition = slurm.partition or os.environ.get("SBATCH_PARTITION", "")
    associations = parse_associations(_show("assoc", f"user={user}", f"format={','.join(ASSOCIATIONS)}"))
    ours = association_of(associations, cluster, account, partition)
    qos = slurm.qos or os.environ.get("SBATCH_QOS") or (ours.qos if ours else "")
    of_qos = parse_qos(_show("qos", f"format={','.join(QOS)}")).get(qos)
    return _least(ours.submit if ours else None, of_qos)


def _show(*words: str) -> str:
    return said("sacctmgr", "-nP", "show", *words).out


def parse_config(text: str) -> dict[str, str]:
    """``scontrol show config`` as a mapping."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def parse_associations(text: str) -> Associations:
    """Lines of ``sacctmgr -nP show assoc`` in our format."""
    lines = rows(text, len(ASSOCIATIONS))
    return {(line[0], line[1], line[2]): Association(_number(line[3]), line[4]) for line in lines}


def association_of(associations: Associations, cluster: str, account: str, partition: str) -> Association | None:
    """The association that Slurm goes by: of this cluster and account, and of the partition where there is one."""
    return associations.get((cluster, account, partition)) or associations.get((cluster, account, ""))


def parse_qos(text: str) -> Mapping[str, int | None]:
    """The smallest limit on jobs of each QOS, out of ``sacctmgr -nP show qos`` in our format."""
    return {name: _least(*map(_number, numbers)) for name, *numbers in rows(text, len(QOS))}


def _least(*numbers: int | None) -> int | None:
    return min((number for number in numbers if number is not None), default=None)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
