"""How much of a GPU a training uses: floating point operations per token against what the device can do."""

import re
from typing import Final

PEAK_BF16: Final[dict[str, float]] = {
    "A100": 312e12,
    "A30": 165e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "A10G": 70e12,
    "A6000": 154.8e12,
    "L4": 121e12,
    "L40": 181.05e12,
    "L40S": 362.05e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165.2e12,
    "H100": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989.4e12,
    "H200 NVL": 835e12,
    "GH200": 989.4e12,
    "B100": 1750e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "MI210": 181e12,
    "MI250X": 191.5e12,
    "MI300X": 1307.4e12,
    "MI325X": 1307.4e12,
}
"""Dense bfloat16 peak of one device in FLOP/s, from the makers' data sheets (half of a figure given "with sparsity").

Keys are words of the name that the driver gives, e.g. "NVIDIA H100 80GB HBM3" (SXM). An MI250X is two devices.
"""


def peak_flops(gpu: str) -> float | None:
    """Peak bf16 FLOP/s of a device by the driver's name for it; None for one that is not in the table (a CPU)."""
    words = set(re.split(r"[\s-]+", gpu))
    if "MIG" in words:  # a slice, of which the name does not tell how much of the device it is
        return None
    known = [name for name in PEAK_BF16 if set(name.split()) <= words]
    return PEAK_BF16[max(known, key=lambda name: len(name.split()))] if known else None


def flops_per_token(parameters: int, layers: int, hidden: int, sequence_length: int) -> float:
    """Model FLOPs of training one token: ``6 N + 12 L H T``.

    Chowdhery et al. 2022 (PaLM), appendix B: 2 N forward and 4 N backward for the matrix products, and 12 L H T for
    attention over a sequence of length T with L layers of width H (heads x head size). Recomputation of activations is
    not counted, and attention is counted in full, without regard to its mask, to sliding windows or to the borders of
    packed documents.

    Parameters
    ----------
    parameters : those that take part in products: without an embedding table that is only looked up in. One that is
        tied to the output head counts, once.
    """
    return 6.0 * parameters + 12.0 * layers * hidden * sequence_length


def mfu(tokens_per_second: float, flops: float, gpu: str, gpus: int) -> float | None:
    """Model FLOPs utilization, 0 to 1: ``tokens/s x FLOPs per token / (GPUs x peak)``; None for an unknown device."""
    peak = peak_flops(gpu)
    return None if peak is None else tokens_per_second * flops / (gpus * peak)
