"""Two models on the same tokens: how far apart what they expect is. Needs numpy and pyarrow, no model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hala_hpc.models import card

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

TOKENS: Final = "tokens.parquet"
RESULT: Final = "result.json"
LEAST: Final = 1e-9
"""Probability that is given to what is left over beside the likeliest tokens, at least: it is a difference of sums."""


@dataclass(frozen=True)
class Place:
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


def write(path: Path, places: Sequence[Place]) -> None:
    """One row a token."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "text": pa.array([place.text for place in places], pa.string()),
            "position": pa.array([place.position for place in places], pa.int64()),
            "token": pa.array([place.token for place in places], pa.int64()),
            "log_probability": pa.array([place.log_probability for place in places], pa.float64()),
            "likely_tokens": pa.array([list(place.likely) for place in places], pa.list_(pa.int64())),
            "likely": pa.array([list(place.likely.values()) for place in places], pa.list_(pa.float64())),
        }
    )
    pq.write_table(table, path)


def read(path: Path) -> list[Place]:
    """What ``write`` wrote. Raises OSError, pyarrow.ArrowException or KeyError where it is not whole."""
    import pyarrow.parquet as pq

    return [
        Place(
            row["text"],
            row["position"],
            row["token"],
            row["log_probability"],
            dict(zip(row["likely_tokens"], row["likely"], strict=True)),
        )
        for row in pq.ParquetFile(path).read().to_pylist()
    ]


def divergence(one: Place, other: Place) -> float:
    """Kullback-Leibler divergence of ``other`` from ``one`` at a token, in nats: at least so much.

    Over the tokens that both name, and all others as one: joining outcomes never makes it larger (log sum inequality).
    """
    import numpy as np

    both = sorted(one.likely.keys() & other.likely.keys())
    logs = np.array([[model.likely[token] for token in both] for model in (one, other)]).reshape(2, -1)
    rest = np.log(np.maximum(1 - np.exp(logs).sum(1), LEAST))
    p, q = np.column_stack([logs, rest])
    return max(0.0, float((np.exp(p) * (p - q)).sum()))


def compare(base: Sequence[Place], other: Sequence[Place]) -> dict[str, Any]:
    """How far ``other`` is from ``base``: all in nats a token, ``same_first`` the share of tokens with the same choice.

    Raises ValueError where the two are not of the same tokens.
    """
    if [(one.text, one.position, one.token) for one in base] != [(one.text, one.position, one.token) for one in other]:
        raise ValueError("the two were not given the same tokens")
    texts = list(dict.fromkeys(place.text for place in base))
    pairs = list(zip(base, other, strict=True))
    by_text = {text: _summary([pair for pair in pairs if pair[0].text == text]) for text in texts}
    return {**_summary(pairs), "by_text": by_text}


def _summary(pairs: Sequence[tuple[Place, Place]]) -> dict[str, Any]:
    import numpy as np

    found: Floats = np.array([(one.log_probability, other.log_probability) for one, other in pairs])
    change = found[:, 1] - found[:, 0]
    worst = int(np.abs(change).argmax())
    return {
        "tokens": len(pairs),
        "log_probability": float(found[:, 1].mean()),
        "base_log_probability": float(found[:, 0].mean()),
        "difference": float(change.mean()),
        "absolute_difference": float(np.abs(change).mean()),
        "largest_difference": float(change[worst]),
        "largest_at": {"text": pairs[worst][0].text, "position": pairs[worst][0].position},
        "divergence": float(np.mean([divergence(*pair) for pair in pairs])),
        "same_first": float(np.mean([one.first == other.first for one, other in pairs])),
    }


def report(base: str, folders: Mapping[str, Path]) -> dict[str, Any]:
    """What the models' shards (folders by label) come to, held against the model ``base``.

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


def render(told: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [f"# {' and '.join(f'`{label}`' for label in told['models'])} on {told['tokens']:,} tokens", ""]
    columns = (
        "model", "size, GB", "of the base", "output tokens/s", "of the base", "log-probability", "difference",
        "absolute", "largest", "divergence", "same choice",
    )  # fmt: skip
    lines += card.table(columns, [_cells(label, model) for label, model in told["models"].items()])
    return "\n".join(
        [
            *lines,
            "",
            "Log-probabilities are natural ones, the mean over all tokens. Divergence is Kullback-Leibler's, at least",
            f"so much, of each model from `{told['base']}`; same choice: how often both would write the same token.",
            "",
        ]
    )


def _cells(label: str, model: Mapping[str, Any]) -> list[str]:
    against = model["against_base"]
    size, speed = f"{model['bytes'] / 1e9:,.3f}", f"{model['throughput']['output_tokens_per_second']:,.1f}"
    cells = [f"`{label}`", size, f"{model['size_ratio']:.3f}", speed, f"{model['throughput_ratio']:.2f}"]
    cells.append(f"{model['log_probability']:.5f}")
    if against is None:
        return [*cells, "", "", "", "", ""]
    names = ("difference", "absolute_difference", "largest_difference", "divergence")
    return [*cells, *(f"{against[name]:.5f}" for name in names), f"{against['same_first']:.2%}"]
