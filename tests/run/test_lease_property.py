"""Whatever workers do, and whenever they fall silent: one at most holds a shard, and one publishes it, once.

Hypothesis draws the order of events; a worker's silence is acted out by the age of its beacon. The test with real
processes is ``test_chaos``.
"""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hala_hpc.run import appending
from hala_hpc.run.lease import Finder, Lease, Leases
from hala_hpc.run.publishing import publish
from tests.run.helpers import bare_run, silent, worker

SHARDS, ATTEMPTS = 3, 6
WORKERS = ("ada", "bo", "cy")
somebody = st.sampled_from(WORKERS)


class Workers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.run_ = bare_run(Path(self.folder.name), SHARDS)
        self.leases: dict[str, Leases] = {name: worker(self.run_, name, ATTEMPTS) for name in WORKERS}
        self.finders = {name: Finder(self.leases[name], SHARDS, name) for name in WORKERS}
        self.believed: dict[str, list[Lease]] = {name: [] for name in WORKERS}
        self.asleep: set[str] = set()
        self.published: dict[int, str] = {}

    @precondition(lambda self: len(self.asleep) < len(WORKERS))
    @rule(name=somebody)
    def claim(self, name: str) -> None:
        self._wake(name)
        lease = self.finders[name].next()
        if lease is not None:
            assert lease.shard not in self.published
            self.believed[name].append(lease)

    @rule(name=somebody)
    def fall_asleep(self, name: str) -> None:
        self.asleep.add(name)
        silent(self.leases[name])

    @rule(name=somebody)
    def wake_up(self, name: str) -> None:
        self._wake(name)

    @rule(name=somebody)
    def list_shards_and_look_again_later(self, name: str) -> None:
        self._wake(name)
        self.finders[name] = Finder(self.leases[name], SHARDS, name)

    @rule(name=somebody, data=st.data())
    def give_back(self, name: str, data: st.DataObject) -> None:
        self._wake(name)
        if lease := self._one_of(name, data):
            self.leases[name].release(lease)

    @rule(name=somebody, data=st.data())
    def give_up(self, name: str, data: st.DataObject) -> None:
        self._wake(name)
        if lease := self._one_of(name, data):
            self.leases[name].fail(lease)

    @rule(name=somebody, data=st.data(), tidy=st.booleans())
    def publish_what_it_believes_to_hold(self, name: str, data: st.DataObject, tidy: bool) -> None:
        self._wake(name)
        if lease := self._one_of(name, data):
            temporary = appending.temporary_output(self.run_, lease.shard, name)
            temporary.write_text(name)
            if publish(self.run_, lease.shard, temporary):
                assert lease.shard not in self.published
                self.published[lease.shard] = name
            assert not temporary.exists()
            if tidy:  # else it was killed before it could
                self.leases[name].clear(lease.shard)

    @invariant()
    def one_at_most_holds_a_shard(self) -> None:
        for shard in range(SHARDS):
            holders = {
                name
                for name in WORKERS
                for lease in self.believed[name]
                if lease.shard == shard and self.leases[name].holds(lease)
            }
            assert len(holders) <= 1

    @invariant()
    def what_is_published_stays_as_it_is(self) -> None:
        for shard, name in self.published.items():
            assert self.run_.shard_output(shard).read_text() == name

    def teardown(self) -> None:
        self.folder.cleanup()

    def _wake(self, name: str) -> None:
        self.asleep.discard(name)
        self.leases[name].now()

    def _one_of(self, name: str, data: st.DataObject) -> Lease | None:
        if not self.believed[name]:
            return None
        return self.believed[name].pop(data.draw(st.integers(0, len(self.believed[name]) - 1)))


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=80, stateful_step_count=40, deadline=None, derandomize=True)
