"""What a cluster says of itself: partitions with the nodes in them, accounts, limits, and what lies around in a shell.

Slurm is asked once for each; what it prints is read by pure functions.
"""

import grp
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.slurm import commands

UNUSABLE: Final = ("DOWN", "DRAIN", "FAIL", "MAINT", "FUTURE", "UNKNOWN", "NOT_RESPONDING", "POWER_DOWN")
"""Parts of a node's state in which it takes no jobs, or none soon."""
_GPU: Final = re.compile(r"(?:^|,)gpu(?::([A-Za-z][\w.-]*))?:(\d+)")
QUOTA_SECONDS: Final = 5.0
QUOTA_LINES: Final = 6


@dataclass(frozen=True)
class Shape:
    """What a job can have of a node."""

    cpus: int
    memory_mb: int
    gpus: int = 0
    gpu_type: str | None = None

    def __str__(self) -> str:
        gpus = f", {self.gpus} GPUs{f' ({self.gpu_type})' if self.gpu_type else ''}" if self.gpus else ""
        return f"{self.cpus} cores, {self.memory_mb / 1024:,.0f} GiB{gpus}"


@dataclass(frozen=True)
class Node:
    """One node, and the partitions that it is in."""

    name: str
    shape: Shape
    partitions: tuple[str, ...]
    is_usable: bool


@dataclass(frozen=True)
class Partition:
    """A partition that this user may use; ``shapes`` of its usable nodes with their numbers, the most first.

    ``minutes``: the longest job; None where there is no limit.
    """

    name: str
    is_default: bool
    minutes: int | None
    shapes: tuple[tuple[Shape, int], ...]

    @property
    def nodes(self) -> int:
        return sum(count for _, count in self.shapes)

    def shape(self, with_gpus: bool) -> Shape | None:
        """What most nodes are, or most of those with GPUs; None where there are none."""
        return next((shape for shape, _ in self.shapes if shape.gpus or not with_gpus), None)

    def __str__(self) -> str:
        shapes = "; ".join(f"{count} x {shape}" for shape, count in self.shapes)
        return f"{self.name}: {shapes}; jobs of {_length(self.minutes)}"


@dataclass(frozen=True)
class Cluster:
    """A cluster as its user sees it. ``accounts`` is empty where accounting is off or Slurm asks for none."""

    name: str
    version: str
    partitions: tuple[Partition, ...]
    accounts: tuple[str, ...]
    default_account: str | None
    accounting: bool
    largest_array: int

    def of_gpus(self) -> list[Partition]:
        """Partitions with GPUs, the likeliest first: Slurm's default, else the one with the most of them."""
        usable = [partition for partition in self.partitions if partition.shape(with_gpus=True)]
        return sorted(usable, key=lambda partition: (not partition.is_default, -_gpus(partition)))

    def of_cpus(self) -> list[Partition]:
        """All partitions, the likeliest for work without GPUs first: those that have none, then Slurm's default."""
        return sorted(self.partitions, key=lambda each: (_gpus(each) > 0, not each.is_default, -each.nodes))


def look() -> Cluster:
    """Ask Slurm. Raises HalaError where there is none, or no partition for this user."""
    config = commands.parse_config(commands.run("scontrol", "show", "config"))
    nodes = parse_nodes(commands.run("scontrol", "show", "node", "--oneliner"))
    name = config.get("ClusterName", "")
    accounting = not config.get("AccountingStorageType", "").endswith("/none")
    accounts, default = _accounts(name) if accounting else ([], None)
    text = commands.run("scontrol", "show", "partition", "--oneliner")
    partitions = parse_partitions(text, nodes, accounts, _groups(), os.geteuid() == 0)
    if not partitions:
        raise HalaError("Slurm shows no partition that takes jobs of this user", "`sinfo -s` shows what there is")
    version, largest = config.get("SLURM_VERSION", ""), int(config.get("MaxArraySize", "0"))
    return Cluster(name, version, tuple(partitions), tuple(accounts), default, accounting, largest)


def parse_nodes(text: str) -> list[Node]:
    """``scontrol show node --oneliner``."""
    return [_node(line) for line in text.splitlines() if _value(line, "NodeName")]


def _node(line: str) -> Node:
    gpus = _GPU.findall(re.sub(r"\([^)]*\)", "", _value(line, "Gres")))
    types = {kind for kind, _ in gpus}
    memory = _whole(_value(line, "RealMemory")) - _whole(_value(line, "MemSpecLimit"))
    cpus = _whole(_value(line, "CPUEfctv")) or _whole(_value(line, "CPUTot"))
    kind = types.pop() if len(types) == 1 else ""
    shape = Shape(cpus, memory, sum(int(count) for _, count in gpus), kind or None)
    state = _value(line, "State").upper()
    usable = not any(word in state for word in UNUSABLE)
    return Node(_value(line, "NodeName"), shape, tuple(_value(line, "Partitions").split(",")), usable)


def parse_partitions(
    text: str, nodes: Sequence[Node], accounts: Collection[str], groups: Collection[str], is_root: bool = False
) -> list[Partition]:
    """``scontrol show partition --oneliner``: those that are up, have usable nodes, and are open to this user."""
    partitions = []
    for line in text.splitlines():
        name = _value(line, "PartitionName")
        inside = Counter(node.shape for node in nodes if node.is_usable and name in node.partitions)
        closed = _value(line, "State") != "UP" or (_value(line, "RootOnly") == "YES" and not is_root)
        if not name or not inside or closed:
            continue
        if _open(line, "AllowAccounts", accounts) and (is_root or _open(line, "AllowGroups", groups)):
            minutes = commands.parse_minutes(_value(line, "MaxTime"))
            partitions.append(Partition(name, _value(line, "Default") == "YES", minutes, tuple(inside.most_common())))
    return partitions


def _open(line: str, key: str, mine: Collection[str]) -> bool:
    allowed = _value(line, key)
    return allowed in ("", "ALL") or not mine or bool(set(allowed.split(",")) & set(mine))


def _value(line: str, key: str) -> str:
    match = re.search(rf"(?:^|\s){key}=(\S*)", line)
    return match[1] if match else ""


def _whole(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _gpus(partition: Partition) -> int:
    return sum(shape.gpus * count for shape, count in partition.shapes)


def _length(minutes: int | None) -> str:
    if minutes is None:
        return "any length"
    return f"up to {minutes} min" if minutes < 120 else f"up to {minutes / 60:,.0f} h"


def _accounts(cluster: str) -> tuple[list[str], str | None]:
    """The accounts of this user on the cluster, and the default; nothing where Slurm does not say."""
    user = commands.user()
    try:
        words = ("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=Cluster,Account")
        lines = commands.rows(commands.said(*words).stdout, 2)
        accounts = sorted({account for where, account in lines if where == cluster and account})
        said = commands.said("sacctmgr", "-nP", "show", "user", user, "format=DefaultAccount").stdout.split()
    except HalaError:
        return [], None
    return accounts, next((word for word in said if word in accounts), None)


def _groups() -> list[str]:
    names = []
    for number in os.getgroups():
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return names


def modules() -> list[str] | None:
    """The modules of a Python and of CUDA that are loaded in this shell; None where there are no modules here."""
    if not any(os.environ.get(name) for name in ("LMOD_CMD", "MODULESHOME", "LOADEDMODULES", "MODULEPATH")):
        return None
    loaded = filter(None, os.environ.get("LOADEDMODULES", "").split(":"))
    return [name for name in loaded if re.match(r"(?i)(anaconda|miniconda|python|cuda|nvhpc)", name)]


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on, such as lustre; empty where the kernel does not say."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for _, where, what, *_ in (line.split(" ") for line in mounts if line.count(" ") >= 2):
        place = where.replace("\\040", " ")
        if len(place) >= len(best) and (place == "/" or folder == Path(place) or Path(place) in folder.parents):
            best, kind = place, what
    return kind


def quotas(folder: Path) -> list[str]:
    """What the quota programs that are here say of this user, in a few lines."""
    asks = [["lfs", "quota", "-h", "-u", commands.user(), str(folder)], ["quota", "-s"]]
    return [line for words in asks for line in _quota(words)][:QUOTA_LINES]


def _quota(words: list[str]) -> Iterator[str]:
    if shutil.which(words[0]) is None:
        return
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=QUOTA_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    yield from (" ".join(line.split()) for line in done.stdout.splitlines() if line.strip())
