"""How far apart two models are, against numbers worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from hala_hpc.tasks.compare import measure
from hala_hpc.tasks.compare.measure import TEXTS, TokenLogprob


def place(
    log_probability: float, likely: dict[int, float], text: str = "a", position: int = 1, token: int = 5
) -> TokenLogprob:
    return TokenLogprob(text, position, token, log_probability, likely)


def distribution(seed: int, size: int = 50) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 2, size)
    return logits - np.log(np.exp(logits).sum())


def top(logs: np.ndarray, count: int) -> dict[int, float]:
    return {int(token): float(logs[token]) for token in np.argsort(-logs)[:count]}


def test_divergence_is_kullback_leiblers_where_all_tokens_are_named() -> None:
    one, other = distribution(1), distribution(2)
    whole = float((np.exp(one) * (one - other)).sum())
    found = measure.divergence(place(0, top(one, 50)), place(0, top(other, 50)))
    assert found == pytest.approx(whole, rel=1e-6)
    parts = [measure.divergence(place(0, top(one, n)), place(0, top(other, n))) for n in (1, 5, 20, 40)]
    assert all(0 <= part <= whole + 1e-9 for part in parts)
    assert parts[-1] > parts[0] and parts[-1] > 0.5 * whole
    assert measure.divergence(place(0, top(one, 7)), place(0, top(one, 7))) == 0


def test_nothing_in_common_is_far_apart() -> None:
    half = math.log(0.5)
    apart = measure.divergence(place(0, {1: half, 2: half}), place(0, {3: half, 4: half}))
    assert apart == pytest.approx(0.0, abs=1e-6), "all that is known of both is one and the same rest"
    told = measure.divergence(place(0, {1: half, 5: -9.0}), place(0, {1: -9.0, 3: half}))
    assert told == pytest.approx(0.5 * (half + 9) + 0.5 * (half - math.log(1 - math.exp(-9))), rel=1e-3)


def test_a_comparison_by_hand() -> None:
    base = [place(-1.0, {5: -1.0, 6: -2.0}), place(-2.0, {7: -0.5, 5: -2.0}, "b")]
    other = [place(-1.5, {6: -1.0, 5: -1.5}), place(-1.9, {7: -0.5, 5: -1.9}, "b")]
    found = measure.compare(base, other)
    assert found["difference"] == pytest.approx(-0.2)
    assert found["absolute_difference"] == pytest.approx(0.3)
    assert (found["largest_difference"], found["largest_at"]) == (-0.5, {"text": "a", "position": 1})
    assert found["same_first"] == 0.5
    assert found["by_text"]["b"]["difference"] == pytest.approx(0.1)
    assert (found["log_probability"], found["base_log_probability"]) == (pytest.approx(-1.7), pytest.approx(-1.5))
    with pytest.raises(ValueError, match="same tokens"):
        measure.compare(base, other[:1])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    places = [place(-1.25, {5: -1.25, 9: -0.5}), place(-3.0, {1: -0.1}, "ب", 2, 1)]
    measure.write(tmp_path / "t.parquet", places)
    assert measure.read_logprobs(tmp_path / "t.parquet") == places


def test_a_report_of_two_models(tmp_path: Path) -> None:
    for label, size, speed, value in (("bf16", 2_000, 10.0, -1.0), ("fp8", 1_000, 18.0, -1.1)):
        (tmp_path / label).mkdir()
        measure.write(tmp_path / label / measure.TOKENS, [place(value, {5: value, 6: -3.0})])
        result = {"weights": "w", "bytes": size, "engine": {}, "throughput": {"output_tokens_per_second": speed}}
        (tmp_path / label / measure.RESULT).write_text(json.dumps(result))
    report = measure.report("bf16", {label: tmp_path / label for label in ("bf16", "fp8")})
    fp8 = report["models"]["fp8"]
    assert (fp8["size_ratio"], fp8["throughput_ratio"]) == (0.5, 1.8)
    assert fp8["against_base"]["difference"] == pytest.approx(-0.1)
    assert report["models"]["bf16"]["against_base"] is None
    lines = measure.render(report).splitlines()
    row = next(line for line in lines if line.startswith("| `fp8`"))
    assert "| 0.500 |" in row and "| 1.80 |" in row and "| -0.10000 |" in row and "| 100.00% |" in row


def test_the_texts_are_several_and_of_all_the_projects_languages() -> None:
    assert len(TEXTS) >= 5
    assert sum("\u0600" <= letter <= "\u06ff" for text in TEXTS.values() for letter in text) > 500
    assert all(len(text) > 200 for text in TEXTS.values())
