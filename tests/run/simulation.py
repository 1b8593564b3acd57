"""Workers on a simulated NFS, in simulated time: every schedule is drawn from a seed, and nothing waits.

Each worker is a thread, and one of them runs at a time: before every call of the system it gives the turn to whoever is
next in simulated time. The calls themselves are those of ``os``, replaced for paths below ``ROOT``, so leases, claims
and publishing run as they are. The server is exact. What is between it and a worker is not: calls take time, names and
attributes are cached, answers are lost and calls sent again (a link then fails with EEXIST though it was made, a rename
with ENOENT), or the client gives up with ETIMEDOUT, done or not; a worker's clock is off; it is killed or frozen.
"""

import contextlib
import errno
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

ROOT = "/simulated"
START = 1_000_000.0
MOST_CALLS = 6_000
"""Of one schedule; it needs some hundreds."""
CHANGES = ("link", "rename", "unlink", "mkdir")


def _closed() -> threading.Lock:
    """A gate, which one thread opens for another: a semaphore of the library takes ten times as long."""
    gate = threading.Lock()
    gate.acquire()
    return gate


class Killed(BaseException):
    """A worker ends here, whatever it was at."""


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Node:
    number: int
    mode: int
    mtime: float
    content: str = ""
    names: dict[str, "Node"] | None = None


@dataclass(frozen=True)
class Weather:
    """How rough a schedule is: chances for each call, seconds, and the share of calls at which others have a turn."""

    kill: float = 0.0
    freeze: float = 0.0
    again: float = 0.0
    timeout: float = 0.0
    cached: float = 0.0
    skew: float = 0.0
    turns: float = 0.5
    latency: float = 0.05


class Worker:
    """A thread on a host of its own. ``trouble`` is what befell it that may well count an attempt."""

    def __init__(self, name: str, weather: Weather, skew: float) -> None:
        self.name, self.weather, self.skew = name, weather, skew
        self.gate = _closed()
        self.at = 0.0
        self.attributes: dict[str, tuple[float, Node | None, float]] = {}
        self.listings: dict[str, tuple[float, list[tuple[str, bool]]]] = {}
        self.beat: Callable[[], None] | None = None
        self.next_beat = 0.0
        self.beating = False
        self.ended = self.killed = False
        self.trouble = False
        self.error: BaseException | None = None


@dataclass
class Simulation:
    """``watch`` is called after each change at the server: the call, the path, and the node there (or None).

    ``away``: from when to when after the start the server answers nobody.
    """

    seed: int
    beat_seconds: float
    freeze_seconds: float
    watch: Callable[[str, str, Node | None], None]
    away: tuple[float, float] | None = None
    now: float = START
    calls: int = 0
    workers: list[Worker] = field(default_factory=list)
    current: Worker | None = None

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self._last = 1
        self._nodes: dict[str, Node] = {}
        self._descriptors: dict[int, str] = {}
        self._idle = _closed()
        self._failure: BaseException | None = None
        self._add(ROOT, Node(1, stat.S_IFDIR | 0o755, self.now, names={}))

    # --- the schedule ---------------------------------------------------------------------------------------------

    def start(self, name: str, weather: Weather, body: Callable[[Worker], None], within: float = 0.0) -> None:
        """Have one more worker, in so many seconds at most."""
        worker = Worker(name, weather, self.chance.uniform(-1, 1) * weather.skew)
        worker.at = self.now + self.chance.random() * within
        worker.next_beat = worker.at + self.beat_seconds
        self.workers.append(worker)

        def live() -> None:
            worker.gate.acquire()
            try:
                if self._failure is None:
                    body(worker)
            except Killed:
                pass
            except BaseException as error:  # noqa: BLE001 (told to whoever runs the simulation)
                worker.error = error
                if isinstance(error, Violation):
                    self._failure = error
            worker.ended = True
            self._pass_on()

        threading.Thread(target=live, daemon=True).start()

    def run(self) -> None:
        """Until all workers have ended. Raises Violation."""
        self._pass_on()
        self._idle.acquire()
        if self._failure is not None:
            raise self._failure

    def _pass_on(self) -> None:
        living = [worker for worker in self.workers if not worker.ended]
        if not living:
            self._idle.release()
            return
        following = min(living, key=lambda worker: worker.at)
        self.now = max(self.now, following.at)
        self.current = following
        following.gate.release()

    def _turn(self, worker: Worker, at: float) -> None:
        """Nothing of this worker until then; whoever is first goes on."""
        worker.at = at
        if min(other.at for other in self.workers if not other.ended) < worker.at:
            self._pass_on()
            worker.gate.acquire()
        else:
            self.now = worker.at
        if self._failure is not None:
            raise Killed

    def _before(self, worker: Worker) -> None:
        """A call of the system is on its way."""
        self.calls += 1
        if self.calls > MOST_CALLS:
            self._failure = self._failure or Violation("it does not come to an end")
        if worker.killed or self._failure is not None:
            raise Killed
        weather, drawn = worker.weather, self.chance.random()
        if drawn < weather.kill:
            self.kill(worker)
        elif drawn < weather.kill + weather.freeze:
            worker.trouble = True
            self._turn(worker, self.now + self.chance.uniform(0.3, 1.0) * self.freeze_seconds)
        elif drawn > 1 - weather.turns:
            self._turn(worker, self.now + self.chance.random() * weather.latency)
        if self.away is not None and self.away[0] <= self.now - START < self.away[1]:
            self._turn(worker, START + self.away[1] + self.chance.random() * weather.latency)
        self._beat_if_due(worker)

    def kill(self, worker: Worker) -> None:
        worker.killed = worker.trouble = True
        raise Killed

    def _beat_if_due(self, worker: Worker) -> None:
        if worker.beat is not None and not worker.beating and worker.next_beat <= self.now:
            worker.beating, worker.next_beat = True, self.now + self.beat_seconds
            try:
                worker.beat()
            finally:
                worker.beating = False

    def sleep(self, seconds: float) -> None:
        worker = self._me()
        until = self.now + seconds
        while self.now < until:
            self._beat_if_due(worker)
            due = worker.next_beat if worker.beat is not None and not worker.beating else until
            self._turn(worker, max(self.now, min(until, due)))

    def _me(self) -> Worker:
        assert self.current is not None
        return self.current

    # --- the client -----------------------------------------------------------------------------------------------

    def _change(self, call: str, change: Callable[[], None], *paths: str) -> None:
        """A call that changes something, with all that may become of it on the way."""
        worker = self._me()
        self._before(worker)
        for path in paths:
            worker.attributes.pop(path, None)
            worker.listings.pop(os.path.dirname(path), None)  # noqa: PTH120 (hundreds of times a schedule)
        drawn, weather = self.chance.random(), worker.weather
        if drawn < weather.timeout:
            if drawn < weather.timeout / 2:
                change()
            raise OSError(errno.ETIMEDOUT, "the server did not answer", paths[-1])
        change()
        if drawn > 1 - weather.again and call in CHANGES:
            self._turn(worker, self.now + self.chance.random() * weather.latency)
            change()  # the answer was lost
        if self.chance.random() < weather.kill:
            self.kill(worker)

    def _found(self, path: str) -> tuple[Node | None, float]:
        """What a name is to this worker, which may be old news, and its time of change."""
        worker = self._me()
        self._before(worker)
        self._may_time_out(worker, path)
        if (known := worker.attributes.get(path)) is not None and known[0] > self.now:
            return known[1], known[2]
        return self._look(worker, path)

    def _may_time_out(self, worker: Worker, path: str) -> None:
        if worker.weather.timeout and self.chance.random() < worker.weather.timeout:
            raise OSError(errno.ETIMEDOUT, "the server did not answer", path)

    def _look(self, worker: Worker, path: str) -> tuple[Node | None, float]:
        node = self._nodes.get(path)
        mtime = node.mtime if node else 0.0
        if worker.weather.cached:
            worker.attributes[path] = self.now + self.chance.random() * worker.weather.cached, node, mtime
        return node, mtime

    def stat(self, path: str, **_: Any) -> Any:
        node, mtime = self._found(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return SimpleNamespace(st_mode=node.mode, st_ino=node.number, st_dev=1, st_mtime=mtime, st_size=1)

    def scandir(self, path: str) -> Any:
        worker = self._me()
        self._before(worker)
        self._may_time_out(worker, path)
        if (known := worker.listings.get(path)) is None or known[0] <= self.now:
            node = self._node(path)
            if node.names is None:
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", path)
            listed = [(name, entry.names is None) for name, entry in node.names.items()]
            known = worker.listings[path] = self.now + self.chance.random() * worker.weather.cached, listed
        return _Listing(path, known[1])

    def utime(self, path: str, times: Any = None) -> None:
        def change() -> None:
            self._node(path).mtime = self.now

        self._change("utime", change, path)
        if self._me().weather.cached:
            self._look(self._me(), path)  # the answer brings the attributes

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        def change() -> None:
            if path not in self._nodes:
                if not flags & os.O_CREAT:
                    raise FileNotFoundError(errno.ENOENT, "no such file", path)
                self._add(path, self._new(stat.S_IFREG))
            elif flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "exists", path)

        self._change("open", change, path)
        descriptor = -2 - len(self._descriptors)
        self._descriptors[descriptor] = path
        return descriptor

    def fsync(self, descriptor: int) -> None:
        self._change("fsync", lambda: None, self._descriptors[descriptor])

    def write(self, path: str, content: str) -> None:
        """A whole file in place of what was there, or a folder that holds this where the name has no suffix."""
        kind = stat.S_IFREG if path.endswith(".txt") else stat.S_IFDIR

        def change() -> None:
            node = self._nodes.get(path) or self._add(path, self._new(kind))
            node.content = content
            self.watch("write", path, node)

        self._change("write", change, path)

    def link(self, source: str, target: str, **_: Any) -> None:
        def change() -> None:
            node = self._node(source)
            if target in self._nodes:
                raise FileExistsError(errno.EEXIST, "exists", target)
            self._add(target, node)
            self.watch("link", target, node)

        self._change("link", change, source, target)

    def rename(self, source: str, target: str, **_: Any) -> None:
        def change() -> None:
            node = self._node(source)
            if node.names is not None and target in self._nodes:
                raise OSError(errno.ENOTEMPTY, "not empty", target)
            self._remove(source)
            self._add(target, node)
            self.watch("unlink", source, None)
            self.watch("rename", target, node)

        self._change("rename", change, source, target)

    def unlink(self, path: str, **_: Any) -> None:
        def change() -> None:
            self._node(path)
            self._remove(path)
            self.watch("unlink", path, None)

        self._change("unlink", change, path)

    def remove_tree(self, path: object) -> None:
        """In the place of ``files.remove_tree``."""
        with contextlib.suppress(OSError):
            self.unlink(str(path))

    def mkdir(self, path: str, mode: int = 0o777, **_: Any) -> None:
        def change() -> None:
            if path in self._nodes:
                raise FileExistsError(errno.EEXIST, "exists", path)
            self._add(path, self._new(stat.S_IFDIR))

        self._change("mkdir", change, path)

    # --- the server -----------------------------------------------------------------------------------------------

    def node(self, path: str) -> Node | None:
        """What the server has there."""
        return self._nodes.get(path)

    def names(self, folder: str) -> list[str]:
        return list(self._node(folder).names or ())

    def _node(self, path: str) -> Node:
        if (node := self._nodes.get(path)) is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return node

    def _new(self, kind: int) -> Node:
        self._last += 1
        return Node(self._last, kind | 0o755, self.now, names={} if stat.S_ISDIR(kind) else None)

    def _add(self, path: str, node: Node) -> Node:
        folder, _, name = path.rpartition("/")
        if folder:
            parent = self._node(folder) if path != ROOT else None
            if parent is not None and parent.names is not None:
                parent.names[name] = node
        self._nodes[path] = node
        return node

    def _remove(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        (self._node(folder).names or {}).pop(name, None)
        del self._nodes[path]


class _Entry:
    def __init__(self, folder: str, name: str, is_file: bool) -> None:
        self.name, self.path, self._is_file = name, f"{folder}/{name}", is_file

    def is_file(self) -> bool:
        return self._is_file


class _Listing:
    def __init__(self, folder: str, listed: list[tuple[str, bool]]) -> None:
        self._entries = [_Entry(folder, name, is_file) for name, is_file in listed]

    def __enter__(self) -> Iterator[_Entry]:
        return iter(self._entries)

    def __exit__(self, *_: object) -> None:
        pass
