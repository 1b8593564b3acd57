"""What an engine says of a model: log-probabilities of texts, how fast it writes, and how far two models are apart.

``TEXTS`` are used when a recipe names none: the project's languages, numbers and code. They were written for this
project, so that they are in no training set, and never change: reports of years apart compare.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data import shapes
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.cut import PlanWatch
from hala_hpc.data.files import sources
from hala_hpc.engines.base import TokenEngine, TokenRequest, outputs_of
from hala_hpc.models import card

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

    of_token = ("text", "position", "token", "log_probability")
    columns = {name: [getattr(place, name) for place in places] for name in of_token}
    columns["likely_tokens"] = [list(place.likely) for place in places]
    columns["likely"] = [list(place.likely.values()) for place in places]
    pq.write_table(pa.table(columns), path)


def read_logprobs(path: Path) -> list[TokenLogprob]:
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
    pairs = list(zip(base, other, strict=True))
    by_text: dict[str, list[tuple[TokenLogprob, TokenLogprob]]] = {}
    for pair in pairs:
        by_text.setdefault(pair[0].text, []).append(pair)
    return {**_difference(pairs), "by_text": {text: _difference(some) for text, some in by_text.items()}}


def _difference(pairs: Sequence[tuple[TokenLogprob, TokenLogprob]]) -> Distance:
    import numpy as np

    logs = np.array([(base.log_probability, other.log_probability) for base, other in pairs], np.float64)
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
    places = {label: read_logprobs(folder / TOKENS) for label, folder in folders.items()}
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


WARM_TOKENS: Final = 8
"""Written before the clock starts: the first steps of an engine are slower."""


@dataclass
class Throughput:
    """How fast a model writes: so many prompts at once, each answered at full length."""

    prompts: int = 64
    prompt_tokens: int = 128
    output_tokens: int = 128


class Speed(TypedDict):
    """What was measured; ``output_tokens`` are those of all prompts."""

    prompts: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    output_tokens_per_second: float


def log_probabilities(
    engine: TokenEngine, tokens: Mapping[str, list[int]], likely: int, check_stop: Callable[[], None]
) -> list[TokenLogprob]:
    """What the model expected at each token of each text after the first."""
    settings = {"max_tokens": 1, "detokenize": False, "prompt_logprobs": likely}
    requests = [TokenRequest(name, ids, settings) for name, ids in tokens.items()]
    outputs = {output.request_id: output for output in outputs_of(engine, requests, check_stop)}
    places = []
    for name, ids in tokens.items():
        for position, logprobs in enumerate(outputs[name].prompt_logprobs):
            if position:
                by_token = {int(token): float(entry.logprob) for token, entry in logprobs.items()}
                places.append(TokenLogprob(name, position, ids[position], by_token[ids[position]], by_token))
    return places


def throughput(
    engine: TokenEngine, tokens: Mapping[str, list[int]], options: Throughput, check_stop: Callable[[], None]
) -> Speed:
    """Output tokens a second, all prompts at once, none of which begins like another."""
    pool = [token for ids in tokens.values() for token in ids]
    length = max(1, min(options.prompt_tokens, engine.context - options.output_tokens))

    def outputs(count: int, written: int, shift: int) -> Sequence[Any]:
        settings = {"max_tokens": written, "min_tokens": written, "ignore_eos": True, "detokenize": False}
        requests = []
        for number in range(count):
            start = (shift + number * 37) % len(pool)
            prompt = [pool[(start + at) % len(pool)] for at in range(length)]
            requests.append(TokenRequest(f"{shift}-{number}", prompt, settings))
        return list(outputs_of(engine, requests, check_stop))

    outputs(min(4, options.prompts), WARM_TOKENS, 1)
    began = time.monotonic()
    answers = outputs(options.prompts, options.output_tokens, 0)
    seconds = time.monotonic() - began
    total = sum(len(answer.outputs[0].token_ids) for answer in answers)
    return Speed(
        prompts=options.prompts,
        prompt_tokens=length,
        output_tokens=total,
        seconds=round(seconds, 4),
        output_tokens_per_second=total / seconds,
    )


TEXTS: Final = {
    "arabic-library": (
        "في صباح يوم ماطر دخلت ليلى مكتبة المدينة القديمة تبحث عن خريطة رسمها جدّها قبل ستين عامًا. قال لها "
        "أمين المكتبة إن الخرائط نُقلت إلى الطابق السفلي بعد أن تسرّب الماء من السقف، ثم أعطاها مفتاحًا "
        "صغيرًا صدئًا وطلب منها ألا تشعل الشموع. نزلت الدرج الحجري وهي تعدّ الدرجات: سبع وعشرون درجة، كما كتب"
        " جدّها في دفتره. وعلى الرفّ الأخير، خلف صندوق من المخطوطات، وجدت الخريطة ملفوفة بقماش أزرق، وعليها "
        "ملاحظة تقول: «من يصل إلى هنا فليكمل الطريق»."
    ),
    "arabic-science": (
        "تتبخّر المياه من سطح البحر عندما تسخّنها أشعة الشمس، فيرتفع البخار إلى طبقات الجو الباردة ويتكاثف "
        "على ذرات الغبار مكوّنًا السحب. وإذا كبرت القطرات حتى بلغ قطرها نصف ملّيمتر تقريبًا سقطت مطرًا. تبلغ "
        "كمية الأمطار في هذه المنطقة نحو ٣٢٠ ملّيمترًا في السنة، يهطل ثلثاها بين شهري كانون الأول وآذار. "
        "ولحساب حجم الماء الذي يجمعه سقف مساحته ١٥٠ مترًا مربعًا نضرب المساحة في ارتفاع المطر: ١٥٠ × ٠٫٣٢ = "
        "٤٨ مترًا مكعبًا."
    ),
    "english-letter": (
        "Dear Mr Okafor, thank you for returning the telescope in better condition than it left us. The "
        "scratch on the eyepiece that you mention was there before; my daughter made it in 2009 when she "
        "tried to look at an eclipse through a paper bag. We would be glad to lend it to your school again in"
        " spring, when Jupiter stands high enough to be seen over the grain silo. Please bring a thicker "
        "blanket this time. The field is colder than it looks, and the last group spent more time warming "
        "their hands than finding the moons."
    ),
    "english-reasoning": (
        "A baker sells loaves in boxes of six and trays of ten. On Monday she packed 14 boxes and 9 trays, "
        "and was left with five loaves that fitted neither. How many loaves did she bake? The boxes hold 14 x"
        " 6 = 84 loaves and the trays 9 x 10 = 90, which together is 174. With the five that were left over "
        "the answer is 179. If she had used trays only, she would have needed 18 of them, and the last one "
        "would have held nine loaves."
    ),
    "basque-walk": (
        "Goizean goiz irten ginen herritik, lainoa oraindik ibarrean zegoela. Bidea harrizkoa zen lehen "
        "orduan, baina gero pagadi batean sartu ginen eta lurra bigun-bigun zegoen hostoz beteta. Amonak esan"
        " zigun gailurrean etxola zahar bat zegoela, artzainek udan erabiltzen zutena, eta han atseden har "
        "genezakeela. Hamaikak aldera iritsi ginen; ateak itxita zeuden, baina leihotik begiratuta mahai bat,"
        " bi aulki eta kandela erdi erre bat ikusi genituen."
    ),
    "python": (
        "from collections import Counter\n"
        "\n"
        "\n"
        "def busiest_hours(visits, most=3):\n"
        '    """The hours of the day with the most visits, as pairs of hour and count."""\n'
        "    hours = Counter(visit.arrived.hour for visit in visits if visit.paid)\n"
        "    ranked = sorted(hours.items(), key=lambda item: (-item[1], item[0]))\n"
        "    if len(ranked) < most:\n"
        "        raise ValueError(f'only {len(ranked)} hours have visits')\n"
        "    return ranked[:most]\n"
        "\n"
        "\n"
        "for hour, count in busiest_hours(load('visits.csv')):\n"
        "    print(f'{hour:02d}:00  {\"#\" * count} ({count})')\n"
    ),
    "translation": (
        "Translate into Arabic.\n"
        "English: The bridge will be closed for repairs until the end of the month.\n"
        "Arabic: سيُغلق الجسر لأعمال الصيانة حتى نهاية الشهر.\n"
        "English: Each patient received 20 mg of the medicine twice a day for six weeks.\n"
        "Arabic: تلقّى كل مريض ٢٠ ملغ من الدواء مرتين يوميًا لمدة ستة أسابيع.\n"
        "English: Our neighbours have three cats, and none of them likes the rain.\n"
        "Arabic: لدى جيراننا ثلاث قطط، ولا تحب أيّ منها المطر.\n"
    ),
}
"""By a name that reports show."""


def read(data: Data, count: int, folder: Path, watch: PlanWatch, notes: Counter[str]) -> dict[str, str]:
    """The texts by name: the project's own, or the first ``count`` rows of the recipe's data that hold any.

    Raises HalaError where no row does.
    """
    if not data.path and not data.hub:
        return dict(TEXTS)
    rows = zip(range(count), _rows(data, folder, watch, notes), strict=False)
    texts = {f"row-{number}": text for number, text in rows}
    if not texts:
        raise HalaError("data: no row holds a text")
    return texts


def tokens_of(model: Path, texts: Mapping[str, str], length: int) -> dict[str, list[int]]:
    """The texts as a model's own tokenizer has them, special tokens included, each cut to ``length``.

    Raises HalaError for a model without ``tokenizer.json``.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    except Exception as error:  # it raises nothing more special
        raise HalaError(f"{model}: no tokenizer.json that can be read: {error}") from error
    tokenizer.no_truncation()
    return {name: list(tokenizer.encode(text).ids)[:length] for name, text in texts.items()}


def agreed(models: Mapping[str, Path], texts: Mapping[str, str], length: int) -> dict[str, list[int]]:
    """The tokens that all models take, of texts with at least two. Raises HalaError where they differ."""
    (first, tokens), *others = ((label, tokens_of(model, texts, length)) for label, model in models.items())
    for label, of_other in others:
        if differing := [name for name in tokens if tokens[name] != of_other[name]]:
            raise HalaError(
                f"task.models: {first} and {label} make different tokens of the same text ({differing[0]})",
                "only models of one tokenizer can be compared token by token",
            )
    long = {name: ids for name, ids in tokens.items() if len(ids) > 1}
    if not long:
        raise HalaError("data: no text has two tokens")
    return long


def _rows(data: Data, folder: Path, watch: PlanWatch, notes: Counter[str]) -> Iterator[str]:
    bad = BadRows(data.bad_rows, notes, folder, most=1)
    for source, chunk in sources.read(data, folder / "input", watch.say, bad):
        shape = shapes.shape_of(data, ["user", "assistant"], chunk.schema())
        shapes.refuse_originals(data, shape.columns, chunk.schema())
        for number, row in zip(chunk.numbers, chunk.rows, strict=True):
            try:
                text = "\n\n".join(text for _, text in shape.texts(row))
            except HalaError as error:
                bad.add(sources.where(source, number), error)
                continue
            if text:
                yield text
