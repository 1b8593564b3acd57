"""How far apart the expectations of two models are on the same tokens. Needs numpy and pyarrow, no model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NotRequired, TypedDict

from hala_hpc.models import card

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

TOKENS: Final = "tokens.parquet"
RESULT: Final = "result.json"
LEAST: Final = 1e-9
"""The least probability of all tokens beside the likeliest ones: it is a difference of sums."""


@dataclass(frozen=True)
class TokenLogprob:
    """What a model expected at one token of a text: the token's log-probability, and the likeliest tokens with theirs.

    ``position`` counts from the text's first token, which has no probability. All in nats.
    """

    text: str
    position: int
    token: int
    log_probability: float
    likely: dict[int, float]

    @property
    def first(self) -> int:
        """The token that the model would have written."""
        return max(self.likely, key=lambda token: (self.likely[token], -token))


class Distance(TypedDict):
    """How far a model is from the base, in nats a token; ``same_first``: the share of tokens with the same choice."""

    tokens: int
    log_probability: float
    base_log_probability: float
    difference: float
    absolute_difference: float
    largest_difference: float
    largest_at: dict[str, str | int]
    divergence: float
    same_first: float
    by_text: NotRequired[dict[str, "Distance"]]


def write(path: Path, places: Sequence[TokenLogprob]) -> None:
    """Write one row a token."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "text": pa.array([place.text for place in places], pa.string()),
        "position": pa.array([place.position for place in places], pa.int64()),
        "token": pa.array([place.token for place in places], pa.int64()),
        "log_probability": pa.array([place.log_probability for place in places], pa.float64()),
        "likely_tokens": pa.array([list(place.likely) for place in places], pa.list_(pa.int64())),
        "likely": pa.array([list(place.likely.values()) for place in places], pa.list_(pa.float64())),
    }
    pq.write_table(pa.table(columns), path)


def read(path: Path) -> list[TokenLogprob]:
    """What ``write`` wrote. Raises OSError, pyarrow.ArrowException or KeyError where it is not whole."""
    import pyarrow.parquet as pq

    rows = pq.ParquetFile(path).read().to_pylist()
    likely = [dict(zip(row.pop("likely_tokens"), row.pop("likely"), strict=True)) for row in rows]
    return [TokenLogprob(**row, likely=by_token) for row, by_token in zip(rows, likely, strict=True)]


def divergence(base: TokenLogprob, other: TokenLogprob) -> float:
    """Kullback-Leibler divergence of ``other`` from ``base`` at a token, in nats: a lower bound.

    Over the tokens that both name, and all others as one: joining outcomes never makes it larger (log sum inequality).
    """
    import numpy as np

    both = sorted(base.likely.keys() & other.likely.keys())
    logs = np.array([[model.likely[token] for token in both] for model in (base, other)]).reshape(2, -1)
    rest = np.log(np.maximum(1 - np.exp(logs).sum(1), LEAST))
    p, q = np.column_stack([logs, rest])
    return max(0.0, float((np.exp(p) * (p - q)).sum()))


def compare(base: Sequence[TokenLogprob], other: Sequence[TokenLogprob]) -> Distance:
    """How far ``other`` is from ``base``. Raises ValueError where the two are not of the same tokens."""
    keys = [[(place.text, place.position, place.token) for place in places] for places in (base, other)]
    if keys[0] != keys[1]:
        raise ValueError("the two were not given the same tokens")
    by_text: dict[str, list[tuple[TokenLogprob, TokenLogprob]]] = {}
    for pair in zip(base, other, strict=True):
        by_text.setdefault(pair[0].text, []).append(pair)
    whole = _difference(list(zip(base, other, strict=True)))
    return {**whole, "by_text": {text: _difference(pairs) for text, pairs in by_text.items()}}


def _difference(pairs: Sequence[tuple[TokenLogprob, TokenLogprob]]) -> Distance:
    import numpy as np

    logs: Floats = np.array([(base.log_probability, other.log_probability) for base, other in pairs])
    change = logs[:, 1] - logs[:, 0]
    worst = int(np.abs(change).argmax())
    return {
        "tokens": len(pairs),
        "log_probability": float(logs[:, 1].mean()),
        "base_log_probability": float(logs[:, 0].mean()),
        "difference": float(change.mean()),
        "absolute_difference": float(np.abs(change).mean()),
        "largest_difference": float(change[worst]),
        "largest_at": {"text": pairs[worst][0].text, "position": pairs[worst][0].position},
        "divergence": float(np.mean([divergence(*pair) for pair in pairs])),
        "same_first": float(np.mean([base.first == other.first for base, other in pairs])),
    }


def report(base: str, folders: Mapping[str, Path]) -> dict[str, Any]:
    """The report of the models' shards (folders by label), compared with the model ``base``.

    Raises OSError, ValueError, KeyError, pyarrow.ArrowException where they are not whole or not comparable.
    """
    results = {label: json.loads((folder / RESULT).read_text("utf-8")) for label, folder in folders.items()}
    places = {label: read(folder / TOKENS) for label, folder in folders.items()}
    first = results[base]
    models = {}
    for label, result in results.items():
        speed = result["throughput"]["output_tokens_per_second"]
        models[label] = {
            **{key: result[key] for key in ("weights", "bytes", "throughput", "engine")},
            "size_ratio": result["bytes"] / first["bytes"],
            "throughput_ratio": speed / first["throughput"]["output_tokens_per_second"],
            "log_probability": sum(place.log_probability for place in places[label]) / len(places[label]),
            "against_base": compare(places[base], places[label]) if label != base else None,
        }
    return {"kind": "compare", "base": base, "tokens": len(places[base]), "models": models}


def render(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# {' and '.join(f'`{label}`' for label in report['models'])} on {report['tokens']:,} tokens", ""]
    columns = (
        "model", "size, GB", "of the base", "output tokens/s", "of the base", "log-probability", "difference",
        "absolute", "largest", "divergence", "same choice",
    )  # fmt: skip
    lines += card.table(columns, [_cells(label, model) for label, model in report["models"].items()])
    lines += [
        "",
        "Log-probabilities are natural ones, the mean over all tokens. Divergence is Kullback-Leibler's, at least",
        f"so much, of each model from `{report['base']}`; same choice: how often both would write the same token.",
        "",
    ]
    return "\n".join(lines)


def _cells(label: str, model: Mapping[str, Any]) -> list[str]:
    against: Mapping[str, float] | None = model["against_base"]
    size, speed = f"{model['bytes'] / 1e9:,.3f}", f"{model['throughput']['output_tokens_per_second']:,.1f}"
    cells = [f"`{label}`", size, f"{model['size_ratio']:.3f}", speed, f"{model['throughput_ratio']:.2f}"]
    cells.append(f"{model['log_probability']:.5f}")
    if against is None:
        return [*cells, "", "", "", "", ""]
    names = ("difference", "absolute_difference", "largest_difference", "divergence")
    return [*cells, *(f"{against[name]:.5f}" for name in names), f"{against['same_first']:.2%}"]
