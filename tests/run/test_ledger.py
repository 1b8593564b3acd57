"""The history can be torn, long, or not writable at all, and nothing depends on it."""

import threading
from pathlib import Path

from hala_hpc.run import ledger
from hala_hpc.run.ledger import Ledger


def test_events_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "ada.jsonl"
    history = Ledger(path, host="n1", job="7_1")
    history.write("claimed", shard=3)
    history.close()
    events = list(ledger.read(path))
    assert [event["event"] for event in events] == ["started", "claimed"]
    assert ledger.first(path)["host"] == "n1"
    assert events[1]["shard"] == 3
    assert events[0]["time"] <= events[1]["time"]


def test_torn_and_strange_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "ada.jsonl"
    Ledger(path).close()
    with path.open("ab") as raw:
        raw.write(b'\xff\n[]\n{"time": 1}\n{"event": "claimed", "sh\n{"event": "ended"}\n')
        raw.write(b'{"event": "ended", "time": 2}\n{"event": "tor')
    assert [event["event"] for event in ledger.read(path)] == ["started", "ended"]
    path.write_bytes(b'{"event": "sta')
    assert list(ledger.read(path)) == []
    assert ledger.first(path) == {}
    path.write_bytes(b"")
    assert ledger.first(path) == {}


def test_only_the_tail_is_read_and_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "ada.jsonl"
    history = Ledger(path)
    for shard in range(1_000):
        history.write("claimed", shard=shard)
    shards = [event["shard"] for event in ledger.read(path, tail=500)]
    assert shards == list(range(1_000 - len(shards), 1_000))
    assert 3 < len(shards) < 20
    assert len(list(ledger.read(path, tail=10**9))) == 1_001


def test_a_full_disk_is_swallowed() -> None:
    history = Ledger(Path("/dev/full"))
    history.write("claimed", shard=1)
    history.close()


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "ada.jsonl"
    history = Ledger(path)
    threads = [
        threading.Thread(target=lambda: [history.write("progress", text="x" * 3_000) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(ledger.read(path))) == 201
