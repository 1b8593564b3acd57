"""Where each rank of a hung training stands, and which one is to blame.

``python -m hala_hpc.tasks.train.launch.stacks RUN`` runs once on each node while the ranks hang: it looks at those of
its node in /proc, writes their Python stacks (py-spy, which does not stop them), and what it saw as JSON for the
launcher.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hala_hpc.run.files import write_durably
from hala_hpc.tasks.train import paths
from hala_hpc.tasks.train.launch import signs
from hala_hpc.tasks.train.launch.signs import RankHeartbeat, place

SECONDS: Final = 20.0
"""py-spy answers in a second; a rank that hangs in the kernel (a dead file server) may keep it for ever."""
WAITING: Final = ("torch/distributed/", "deepspeed/comm/", "deepspeed/runtime/zero/partition")
"""Files whose functions wait for the other ranks."""
STATES: Final = {"T": "stopped", "t": "stopped by a debugger", "D": "waiting for a disk or a driver", "Z": "dead"}
"""/proc's letters for a process that cannot go on by itself."""


@dataclass(frozen=True)
class RankState:
    """One rank as its node saw it. ``state`` is /proc's letter, '' where the process is gone."""

    rank: int
    step: int
    phase: str
    state: str
    is_waiting: bool | None  # in a collective; None where there is no stack


def main() -> None:
    """Look at the ranks of this node; write stacks and findings to ``training/stacks``."""
    run, here = Path(sys.argv[1]), place()
    name, node = here.launch, here.rank  # this program runs once on each node
    ranks = range(node * here.ranks_per_node, (node + 1) * here.ranks_per_node)
    heartbeats = signs.heartbeats(run, name)
    alive = [heartbeats[rank] for rank in ranks if rank in heartbeats]
    texts = [f"=== rank {rank}: no heartbeat" for rank in ranks if rank not in heartbeats]
    with ThreadPoolExecutor(max(1, len(alive))) as pool:
        stacks = list(pool.map(dump, [heartbeat.pid for heartbeat in alive]))
    seen = []
    for heartbeat, stack in zip(alive, stacks, strict=True):
        state = process_state(heartbeat.pid)
        is_waiting = any(part in stack for part in WAITING) if stack else None
        seen.append(RankState(heartbeat.rank, heartbeat.step, heartbeat.phase, state, is_waiting))
        texts.append(_titled(heartbeat, state, stack))
    folder = run / paths.STACKS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{node}.txt").write_text("\n\n".join(texts) + "\n")
    write_durably(folder / f"{name}-{node}.json", json.dumps(list(map(asdict, seen))).encode())


def read(run: Path, name: str, node: int) -> list[RankState]:
    """What ``main`` saw on a node; nothing where it did not get that far."""
    try:
        return [RankState(**rank) for rank in json.loads((run / paths.STACKS / f"{name}-{node}.json").read_bytes())]
    except (OSError, ValueError):
        return []


def culprit(seen: Sequence[RankState], silent: Mapping[int, float], world: int) -> tuple[int | None, str]:
    """The rank that most likely holds up the others, and why. ``silent``: seconds since their last heartbeat."""
    by_rank = {item.rank: item for item in seen}
    for item in seen:
        if item.state in ("T", "t", "Z", ""):
            return item.rank, f"its process is {STATES.get(item.state, 'gone')}"
    if unseen := sorted(set(range(world)) - by_rank.keys()):
        return unseen[0], "it has no heartbeat, or its node did not answer"
    if silent:
        rank = max(silent, key=lambda rank: silent[rank])
        return rank, f"no heartbeat for {silent[rank]:.0f} s ({STATES.get(by_rank[rank].state, 'running')})"
    if (last := min(seen, key=lambda item: item.step)).step < max(item.step for item in seen):
        return last.rank, f"it is at step {last.step} ({last.phase}), others are ahead"
    busy = [item for item in seen if item.is_waiting is False]
    if busy and len(busy) < len(seen) and len(busy) <= world // 2:
        return busy[0].rank, f"it is in {busy[0].phase}, while others wait for it"
    phases = Counter(item.phase for item in seen).most_common()
    (usual, _), (odd, count) = phases[0], phases[-1]
    if len(phases) > 1 and count <= world // 2:
        return next(item.rank for item in seen if item.phase == odd), f"it is in {odd}, others in {usual}"
    return None, "all ranks are at the same place: the network, or the file system"


def process_state(pid: int) -> str:
    """/proc's letter for the state of a process of this node; '' where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def dump(pid: int) -> str:
    """The Python stacks of a process, without stopping it; '' where they cannot be had."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return ""
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _titled(heartbeat: RankHeartbeat, state: str, stack: str) -> str:
    what = f"{STATES.get(state, 'running' if state else 'gone')} ({state or '-'})"
    title = f"=== rank {heartbeat.rank}: pid {heartbeat.pid} on {heartbeat.host}, {what}"
    title += f", step {heartbeat.step}, {heartbeat.phase}"
    return f"{title}\n{stack or 'no stacks: py-spy is missing, or may not look at this process'}"


if __name__ == "__main__":
    main()
