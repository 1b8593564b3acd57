"""The configuration files of a one-machine Slurm cluster, as text."""

import random
import socket
from dataclasses import dataclass
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
CPUS, MEMORY_MB, GPUS = 16, 32000, 2
GRACE_SECONDS = 5


@dataclass(frozen=True)
class Host:
    """This machine as Slurm sees it: its own name, and the address that stands for it."""

    name: str
    address: str
    only_loopback: bool


def this_host() -> Host:
    """The host's name may not resolve, or (in a container) to an address that others reach.

    Slurm can bind to the address of the host's own name or else to all addresses; so it listens on loopback alone only
    where that name resolves to loopback.
    """
    name = socket.gethostname().split(".")[0]
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = ""
    local = address.startswith("127.")
    return Host(name, address if local else "127.0.0.1", local)


@dataclass(frozen=True)
class Ports:
    """One TCP port a daemon; ``slurmd`` holds one for each of NODES."""

    slurmctld: int
    slurmdbd: int
    slurmd: tuple[int, ...]


def free_ports() -> Ports:
    """Ports nobody listens on, so that clusters can run side by side.

    They are drawn below 32768, where Linux starts to hand out ports to outgoing connections: one of those could take a
    free port between this check and the daemon's own bind.
    """
    found: list[int] = []
    candidates = random.sample(range(20000, 32768), 200)
    while len(found) < 2 + len(NODES):
        port = candidates.pop()
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        found.append(port)
    return Ports(found[0], found[1], tuple(found[2:]))


def slurm_conf(root: Path, ports: Ports, host: Host, settings: dict[str, str]) -> str:
    """slurm.conf; ``settings`` overrides or adds single ``Key=value`` lines (never Node or Partition lines)."""
    lines = {
        "ClusterName": "minislurm",
        "SlurmctldHost": f"{host.name}({host.address})",
        "SlurmctldPort": str(ports.slurmctld),
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        # A requeued job may not start before its old credential expires: two minutes by default.
        "AuthInfo": f"socket={root}/munge/socket,cred_expire=5",
        "CredType": "cred/munge",
        **bind_settings(host, "NoInAddrAny,NoCtldInAddrAny"),
        "StateSaveLocation": f"{root}/state",
        "SlurmdSpoolDir": f"{root}/spool/%n",
        "SlurmctldPidFile": f"{root}/spool/slurmctld.pid",
        "SlurmdPidFile": f"{root}/spool/%n.pid",
        "SlurmdParameters": "config_overrides",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "MailProg": "/bin/true",
        "PlugStackConfig": f"{root}/plugstack.conf",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=1",
        "AccountingStorageType": "accounting_storage/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        # Without a default a job that names no memory takes the node's all, and nothing runs beside it.
        "DefMemPerCPU": str(MEMORY_MB // CPUS),
        "GresTypes": "gpu",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "JobRequeue": "1",
        "PriorityType": "priority/multifactor",
        "MaxArraySize": "2001",
        "MaxJobCount": "20000",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=2,default_queue_depth=500",
        "ReturnToService": "2",
        "KillWait": "5",
        "MessageTimeout": "30",
        "SlurmctldTimeout": "120",
        "SlurmdTimeout": "120",
    } | settings
    nodes = [
        f"NodeName={name} NodeHostname={host.name} NodeAddr={host.address} Port={port} "
        f"CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:{GPUS} State=UNKNOWN"
        for name, port in zip(NODES, ports.slurmd, strict=True)
    ]
    everywhere = f"Nodes={','.join(NODES)} MaxTime=INFINITE State=UP PreemptMode=REQUEUE"
    partitions = [
        f"PartitionName=main Default=YES PriorityTier=1 GraceTime=0 {everywhere}",
        f"PartitionName=grace PriorityTier=1 GraceTime={GRACE_SECONDS} {everywhere}",
        f"PartitionName=urgent PriorityTier=10 {everywhere}",
    ]
    return "\n".join([*(f"{key}={value}" for key, value in lines.items()), *nodes, *partitions, ""])


def bind_settings(host: Host, flags: str) -> dict[str, str]:
    return {"CommunicationParameters": flags} if host.only_loopback else {}


def accounting_settings(root: Path, ports: Ports, host: Host, limits: bool) -> dict[str, str]:
    """The slurm.conf lines of a cluster with slurmdbd; ``limits`` enforces those of associations and QOS."""
    lines = {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": host.address,
        "AccountingStoragePort": str(ports.slurmdbd),
        # Talk to slurmdbd takes its munge socket from here, not from AuthInfo.
        "AccountingStoragePass": f"{root}/munge/socket",
        "AccountingStorageTRES": "gres/gpu",
    }
    return lines | ({"AccountingStorageEnforce": "limits"} if limits else {})


def slurmdbd_conf(root: Path, ports: Ports, host: Host) -> str:
    """slurmdbd.conf; slurmdbd finds it beside the slurm.conf that SLURM_CONF names, and wants it 0600."""
    lines = {
        "DbdHost": host.name,
        "DbdAddr": host.address,
        **bind_settings(host, "NoInAddrAny"),
        "DbdPort": str(ports.slurmdbd),
        "SlurmUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={root}/munge/socket",
        "PidFile": f"{root}/spool/slurmdbd.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "localhost",
        "StorageUser": "root",
        "StorageLoc": "slurm",
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def gres_conf(root: Path) -> str:
    """gres.conf: GPUs are device files, as on a real node; a bare count is refused by slurmd."""
    return f"AutoDetect=off\nNodeName={','.join(NODES)} Name=gpu File={root}/nvidia[0-{GPUS - 1}]\n"
