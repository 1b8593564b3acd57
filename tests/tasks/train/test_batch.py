"""The global batch stays what it is, whatever the hardware."""

import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.train.options import Batch, Layout, Options, global_batch, layout


def options(**batch: int) -> Options:
    return Options(batch=Batch(**batch), sequence_length=4096)


@pytest.mark.parametrize("world", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("most", [1, 3, 4, 7])
def test_every_number_of_gpus_sees_the_same_batch(world: int, most: int) -> None:
    found = layout(options(sequences=192, per_device=most), world)
    assert found.world * found.per_device * found.accumulation == 192
    assert found.per_device <= most


def test_as_much_at_once_as_is_allowed() -> None:
    assert layout(options(sequences=64, per_device=4), 8) == Layout(world=8, per_device=4, accumulation=2)
    assert layout(options(sequences=24, per_device=4), 8) == Layout(world=8, per_device=3, accumulation=1)


def test_tokens_are_sequences_of_the_full_length() -> None:
    assert global_batch(options(tokens=4096 * 256)) == 256


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ({}, "either sequences or tokens"),
        ({"sequences": 8, "tokens": 4096}, "either sequences or tokens"),
        ({"sequences": 0}, "batch.sequences: 0 must be at least 1"),
        ({"tokens": 5000}, "not a multiple"),
        ({"tokens": -4096}, "not a multiple"),
        ({"sequences": 12}, "do not divide by 8 GPUs"),
        ({"sequences": 8, "per_device": 0}, "per_device: 0 must be at least 1"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(batch: dict[str, int], told: str) -> None:
    with pytest.raises(HalaError) as refused:
        layout(options(**batch), 8)
    assert told in str(refused.value)
