"""What sacct prints, as Slurm 22.05 printed it, and as others do."""

from hala_hpc.slurm import accounting, queue

RECORDED = """\
1_0|COMPLETED|1795811578|1795811579|1795811579|1795811587|8|1|1|billing=1,cpu=1,gres/gpu=2,mem=2000M,node=1|00:03.475||
1_0.batch|COMPLETED|1795811579|1795811579|1795811579|1795811587|8|1|1|cpu=1,gres/gpu=2,mem=2000M,node=1|00:03.475|216879104|0
1_1|REQUEUED|1795811578|1795811579|1795811579|1795811582|3|1|1|billing=1,cpu=1,gres/gpu=2,mem=2000M,node=1|00:01.006||
1_1.batch|CANCELLED|1795811579|1795811579|1795811579|1795811582|3|1|1|cpu=1,gres/gpu=2,mem=2000M,node=1|00:01.006|217042944|0
1_1|COMPLETED|1795811582|1795811588|1795811588|1795811596|8|1|1|billing=1,cpu=1,gres/gpu=2,mem=2000M,node=1|00:04.346||
1_1.batch|COMPLETED|1795811588|1795811588|1795811588|1795811596|8|1|1|cpu=1,gres/gpu=2,mem=2000M,node=1|00:04.346|216952832|0
5|PENDING|1795811645|Unknown|Unknown|Unknown|0|0|0||00:00:00||0
"""
"""An array of two tasks, of which the second was requeued, and a job that waits."""


def test_a_requeued_task_has_two_allocations() -> None:
    first, again, last = accounting.parse(RECORDED)
    assert [item.job for item in (first, again, last)] == ["1_0", "1_1", "1_1"]
    assert (first.started, first.ended, first.seconds, first.submitted) == (1795811579, 1795811587, 8, 1795811578)
    assert (first.nodes, first.cpus, first.gpus, first.memory) == (1, 1, 2, 2000 * 2**20)
    assert (first.cpu_seconds, first.peak, first.energy) == (3.475, 216879104, None), "energy 0 is not measured"
    assert (again.state, again.seconds, last.submitted, last.eligible) == ("REQUEUED", 3, 1795811582, 1795811588)


def test_running_jobs_types_of_gpus_and_energy() -> None:
    running = (
        "3|RUNNING|10|Unknown|11|Unknown|7|2|16|cpu=16,gres/gpu:a100=4,gres/gpu:h100=4,mem=1.5T,node=2|00:00:00||0\n"
    )
    cancelled = "4|CANCELLED by 1001|10|10|20|3620|3600|1|8|cpu=8,node=1|1-02:03:04||3600000\n"
    energies = "6|COMPLETED|10|10|20|30|10|1|8|cpu=8|00:01|4294967294K|4294967294\n"
    junk = "sacct: some warning\n\n9_[1-4]|PENDING|1|1|None|Unknown|0|0|0||||\n"
    first, second, third = accounting.parse(running + junk + cancelled + energies)
    assert (first.ended, first.eligible, first.gpus, first.memory) == (None, None, 8, int(1.5 * 2**40))
    assert (second.state, second.cpu_seconds, second.energy, second.gpus) == ("CANCELLED", 93784.0, 3600000, None)
    assert third.energy is None


def test_steps_of_what_has_not_started_are_not_those_of_the_job_before() -> None:
    text = "1|COMPLETED|1|1|2|3|1|1|1|cpu=1,mem=1G|00:01||\n2|PENDING|1|Unknown|Unknown|Unknown|0|0|0||||\n"
    (only,) = accounting.parse(text + "2.batch|RUNNING|1|1|2|Unknown|1|1|1|cpu=1|00:00|999|0\n")
    assert only.peak is None


def test_what_ended_a_task_is_read_beside_it() -> None:
    """The two questions to sacct have one way to ask and their own columns."""
    assert [end.job for end in queue.parse("1_0|COMPLETED|0:0|1795811587\n1_0.batch|COMPLETED|0:0|1795811587\n")] == [
        "1_0"
    ]
    assert accounting.seconds_of("02:03.5") == 123.5 and accounting.seconds_of("INVALID") is None
