"""Whatever workers, clocks and NFS do: one worker publishes a shard, none is lost, and attempts have an end.

Ten thousand schedules, each of a seed, run the real leases, claims and publishing on a simulated file system (see
``simulation``). HALA_SCHEDULES=100000 tries more. The test with real processes is ``test_chaos``.
"""

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hala_hpc.run import appending, digests, files, lease, publishing
from hala_hpc.run.finder import Finder
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lease import BEATS, FAILED, Heartbeat, Leases
from hala_hpc.worker import claims, storage
from hala_hpc.worker.claims import Claim, Claims
from tests.run.simulation import ROOT, Node, Simulation, Violation, Weather, Worker

SCHEDULES = int(os.environ.get("HALA_SCHEDULES", "10000"))
TTL, ATTEMPTS = 6.0, 3
CACHED = 4.0
"""Seconds for which a client may believe old attributes; less than a lease, as a site has to see to."""


class OneBeat(Heartbeat):
    """The heartbeat, whose thread is the simulation: it has its turn between any two calls of the worker."""

    def __enter__(self) -> "OneBeat":
        answers = iter(())
        self._stop = SimpleNamespace(wait=lambda seconds: next(answers))  # type: ignore[assignment]

        def beat() -> None:
            nonlocal answers
            answers = iter((False, True))
            self._beat()

        simulation.worker.beat = beat
        return self

    def __exit__(self, *_: object) -> None:
        simulation.worker.beat = None


class Turn:
    """In place of the lock between a worker and its heartbeat, which are one thread here: whoever has it is alone."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._is_beating = False

    def __enter__(self) -> None:
        self._is_beating, self._worker.beating = self._worker.beating, True

    def __exit__(self, *_: object) -> None:
        self._worker.beating = self._is_beating


@dataclass(frozen=True)
class Plan:
    shards: int

    def __len__(self) -> int:
        return self.shards

    def column(self, name: str) -> list[str]:
        return [name] * self.shards


class Ledger:
    def write(self, event: str, **fields: Any) -> None:
        pass


simulation: "Schedule"


@dataclass
class Schedule:
    """One run, and all that befalls it."""

    seed: int
    winners: dict[int, list[str]] = field(default_factory=dict)
    holders: dict[tuple[int, int], Worker] = field(default_factory=dict)
    renewed: set[int] = field(default_factory=set)
    at_work: set[tuple[int, int]] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.shards = self.chance.randint(1, 3)
        choose = self.chance.choice
        self.run = RunDirectory(Path(ROOT), choose((".txt", "")))  # outputs are files, or folders
        self.pace = choose((0.1, TTL / 2))
        self.weather = Weather(
            kill=choose((0.0, 0.003, 0.01)),
            freeze=choose((0.0, 0.003, 0.01)),
            again=choose((0.0, 0.03, 0.2)),
            timeout=choose((0.0, 0.0, 0.01)),
            cached=choose((0.0, CACHED)),
            skew=choose((0.0, 100.0)),
            turns=choose((0.1, 0.5)),
        )
        began = self.chance.random() * 2 * TTL
        self.away = choose((None, (began, began + self.chance.uniform(0.5, 2.0) * TTL)))
        self.simulation = Simulation(self.seed, TTL / BEATS, 3 * TTL, self.watch, self.away)

    @property
    def worker(self) -> Worker:
        assert self.simulation.current is not None
        return self.simulation.current

    # --- promises -------------------------------------------------------------------------------------------------

    def watch(self, call: str, path: str, node: Node | None) -> None:
        """What the server sees."""
        parts = path.removeprefix(f"{ROOT}/").split("/")
        if parts[0] == "shards":
            if call not in ("link", "rename") or path in self.outputs:
                raise Violation(f"{call} of a published output: {path}")
            self.outputs.add(path)
        if parts[0] == "leases" and parts[1] != "workers" and call == "link":
            shard, attempt = map(int, parts[2].split("."))
            self._claimed(shard, attempt)

    def _claimed(self, shard: int, attempt: int) -> None:
        if attempt > ATTEMPTS:
            raise Violation(f"attempt {attempt} of shard {shard}: {ATTEMPTS} are allowed")
        before = f"{ROOT}/leases/000/{shard:06d}.{attempt - 1}"
        holder = self.holders.get((shard, attempt - 1))
        is_held = self.simulation.node(before) is not None and self.simulation.node(before + FAILED) is None
        if is_held and holder is not None and holder is not self.worker and not holder.trouble:
            is_late = (shard, attempt - 1) not in self.at_work and not holder.ended  # which it is about to see
            # A renewed lease has a name that was a dead worker's, whose attributes may be cached: an attempt too many.
            is_mistaken = bool(self.weather.cached) and shard in self.renewed
            if not (is_late or is_mistaken):
                raise Violation(f"shard {shard} is taken from {holder.name}, to whom nothing had happened")
        self.holders[shard, attempt] = self.worker

    def published(self, claim: Claim, content: str, won: bool) -> None:
        output = self.simulation.node(str(self.run.shard_output(claim.shard)))
        if output is None:
            raise Violation(f"shard {claim.shard}: published, and not there")
        if won:
            self.winners.setdefault(claim.shard, []).append(content)
        if won != (output.content == content):
            raise Violation(f"shard {claim.shard}: {content} {'won' if won else 'lost'}, {output.content} stands")

    def hold(self) -> None:
        """At the end."""
        for worker in self.simulation.workers:
            if worker.error is not None:
                raise Violation(f"{worker.name} ended: {worker.error!r}") from worker.error
        for shard in range(self.shards):
            if len(self.winners.get(shard, ())) > 1:
                raise Violation(f"shard {shard}: published by {self.winners[shard]}")
            if self.simulation.node(str(self.run.shard_output(shard))) is None:
                names = [
                    name for name in self.simulation.names(f"{ROOT}/leases/000") if name.startswith(f"{shard:06d}")
                ]
                attempts = [int(name.removesuffix(FAILED).split(".")[1]) for name in names]
                if max(attempts, default=0) < ATTEMPTS:
                    raise Violation(f"shard {shard} is lost: {sorted(names)}")

    # --- workers --------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Raises Violation."""
        for folder in ("shards", "shards/000", "partial", "partial/000", "leases", "leases/000", "leases/workers"):
            self.simulation._add(f"{ROOT}/{folder}", self.simulation._new(0o040000))
        for number in range(self.chance.randint(2, 3)):
            self.simulation.start(f"w{number}", self.weather, self.work, within=self.pace)
        self.simulation.run()
        # Nobody is left: one more comes later, in fair weather, as after `hala resume`.
        self.simulation.now += 2 * TTL
        self.simulation.start("last", Weather(), self.work)
        self.simulation.run()
        self.hold()

    def work(self, worker: Worker) -> None:
        try:
            leases = Leases(self.run, worker.name, TTL, ATTEMPTS)
        except TimeoutError:
            return  # nothing is begun
        plan, ledger = Plan(self.shards), Ledger()
        context: Any = SimpleNamespace(run=self.run, leases=leases, plan=plan, ledger=ledger, should_stop=lambda: False)
        context.rest = lambda seconds: self.simulation.sleep(seconds) or True
        claims_of_worker = Claims(context)
        claims_of_worker._lock = Turn(worker)  # type: ignore[assignment]
        with claims_of_worker as held:
            for claim in held.each():
                claimed = claim.shard, claim.lease.attempt
                self.at_work.add(claimed)
                self.do(held, leases, claim, worker)
                self.at_work.discard(claimed)
        with contextlib.suppress(TimeoutError):
            leases.close()

    def do(self, held: Claims, leases: Leases, claim: Claim, worker: Worker) -> None:
        chance, is_calm = self.chance, worker.name == "last"
        for _ in range(0 if is_calm else chance.randrange(3)):
            self.simulation.sleep(chance.random() * self.pace)
            if claim.lost:
                held.give_back(claim, "lost")
                return
            if chance.random() < 0.1:
                self.renewed.add(claim.shard)
                held.renew(claim)
        drawn = 1.0 if is_calm else chance.random()
        if drawn < 0.1:
            held.give_back(claim)
        elif drawn < 0.2:
            held.give_back(claim, "failed")
        elif drawn < 0.3:
            held.end(claim, leases.give_up)
        else:
            self.publish(held, claim, f"{worker.name} at {claim.lease.path.name}, {chance.random()}")

    def publish(self, held: Claims, claim: Claim, content: str) -> None:
        """A file as rows are, which may be written again; or a folder as items are, which is given back instead."""
        place = held.storage(lambda: appending.temporary_output(self.run, claim.shard, self.worker.name))

        def write(place: Path) -> None:
            self.simulation.write(str(place), content)

        if self.run.suffix:
            self.published(claim, content, held.publish(claim, place, 0.0, write, done=1))
            return
        try:
            write(place)
            won = held.publish(claim, place, 0.0, done=1)
        except TimeoutError:
            held.give_back(claim)
        else:
            self.published(claim, content, won)


ON_PATHS = ("stat", "scandir", "utime", "open", "link", "rename", "unlink", "mkdir")


@contextmanager
def installed(running: Callable[[], Simulation]) -> Iterator[None]:
    """Calls of ``os`` for paths below ``ROOT`` go to the simulation that is running."""

    def on_paths(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            paths = [os.fspath(arg) if hasattr(arg, "__fspath__") else arg for arg in args]
            if paths and isinstance(paths[0], str) and paths[0].startswith(ROOT):
                return getattr(running(), name)(*paths, **kwargs)
            return real(*args, **kwargs)

        return call

    real_fsync, real_close = os.fsync, os.close
    with pytest.MonkeyPatch.context() as patch:
        for name in ON_PATHS:
            patch.setattr(os, name, on_paths(name, getattr(os, name)))
        patch.setattr(os, "fsync", lambda fd: running().fsync(fd) if fd < -1 else real_fsync(fd))
        patch.setattr(os, "close", lambda fd: None if fd < -1 else real_close(fd))
        yield


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls of the system and of the clock go to the simulation."""
    clock = SimpleNamespace(
        sleep=lambda seconds: simulation.simulation.sleep(seconds),
        monotonic=lambda: simulation.simulation.now,
        time=lambda: simulation.simulation.now + simulation.worker.skew,
    )
    monkeypatch.setattr(claims, "time", clock)
    monkeypatch.setattr(lease, "time", clock)
    monkeypatch.setattr(storage, "time", clock)
    monkeypatch.setattr(storage, "say", lambda text: None)
    monkeypatch.setattr(claims, "Heartbeat", OneBeat)
    monkeypatch.setattr(digests, "write", lambda folder: None)
    monkeypatch.setattr(publishing, "fsync_tree", lambda folder: None)
    for module in (files, publishing):
        monkeypatch.setattr(module, "remove_tree", lambda folder: simulation.simulation.remove_tree(folder))
    with installed(lambda: simulation.simulation):
        yield


def broken(seeds: range) -> str:
    """The first promise that is broken by one of the schedules; '' where all are kept."""
    global simulation
    for seed in seeds:
        simulation = Schedule(seed)
        random.seed(seed)  # of the pauses of idle workers
        try:
            simulation.play()
        except Violation as violation:
            return f"schedule {seed}: {violation}"
    return ""


def test_promises_are_kept_in_every_schedule() -> None:
    assert broken(range(SCHEDULES)) == ""


# --- and the schedules see what would break them ----------------------------------------------------------------------


def publish_by_rename(temporary: Path, output: Path) -> bool:
    """It overwrites what another worker has published."""
    files.rename(temporary, output)
    return True


def link_that_trusts_its_answer(source: Path, target: Path) -> bool:
    """An answer that was lost is taken for a refusal."""
    try:
        target.hardlink_to(source)
    except FileExistsError:
        return False
    return True


def rename_that_trusts_its_answer(source: Path, target: Path) -> None:
    source.rename(target)


def local_now(leases: Leases) -> float:
    """The time of this host, in place of the file server's."""
    files.touched_now(leases.beacon)
    return float(claims.time.time())


def attempts_without_end(finder: Finder, held: list[Any]) -> int:
    return max((lease.attempt for lease in held), default=0) + 1


def take_over_at_once(leases: Leases, age: float, now: float) -> float:
    """Whether the holder lives is not looked at."""
    return -1.0


def judge_after_a_silence(leases: Leases, age: float, now: float) -> float:
    """Nobody had a heartbeat while the server was away; whoever is back first takes the shards of the others."""
    return leases.ttl - age


def forget_what_broke_off(finder: Finder) -> None:
    """A claim was made, its answer never came: the shard is ours, and nobody knows."""
    finder._leases.doubtful.clear()


@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (publishing, "_publish_file", publish_by_rename),
        (publishing, "link", link_that_trusts_its_answer),
        (lease, "link", link_that_trusts_its_answer),
        (publishing, "rename", rename_that_trusts_its_answer),
        (Leases, "now", local_now),
        (Finder, "_attempt_after", attempts_without_end),
        (Leases, "until_stale", take_over_at_once),
        (Leases, "until_stale", judge_after_a_silence),
        (Finder, "_doubtful", forget_what_broke_off),
    ],
)
def test_a_broken_promise_is_seen(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, mutant: Callable[..., Any]
) -> None:
    monkeypatch.setattr(where, name, mutant)
    violation = broken(range(SCHEDULES))
    print(violation)
    assert violation
