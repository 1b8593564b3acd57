"""The craft of text: rates of skeleton, cutting and checks; false alarms on human translations, and what is caught."""

import argparse
import contextlib
import gc
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pycld2
from common import data, report, seconds, title
from markdown_it import MarkdownIt

from hala_hpc.config.schema import EngineOptions, Recipe
from hala_hpc.data.cut import estimated_tokens
from hala_hpc.data.shapes import Shape
from hala_hpc.engines.base import Completion
from hala_hpc.tasks.translate.options import Options
from hala_hpc.tasks.translate.rows import InSegments
from hala_hpc.text import ladder
from hala_hpc.text.checks import BOUNDS, Pair, checks, flags
from hala_hpc.text.ladder import Answer, Manner
from hala_hpc.text.languages import language
from hala_hpc.text.protection import masked
from hala_hpc.text.segments import segments
from hala_hpc.text.skeleton import shape_faults, skeleton

Pairs = Sequence[tuple[str, str]]
ARABIC, BASQUE, SAME = (Pair(language("en"), language(code)) for code in ("ar", "eu", "en"))
PERSIAN = (
    "این کتاب را دیروز از کتابخانه گرفتم و هنوز نخوانده‌ام",
    "لطفا یک تابع بنویسید که دو عدد را با هم جمع کند",
    "پایتخت این کشور بزرگ است و جمعیت زیادی دارد",
    "چگونه می‌توانم زبان خود را در چند ماه بهتر کنم",
    "هوا امروز بسیار سرد است و در کوه‌ها برف می‌بارد",
    "سه نکته برای سالم ماندن در زمستان بگویید",
    "من هر روز صبح یک فنجان چای داغ می‌نوشم",
    "دانشمندان درباره تغییرات آب و هوا هشدار داده‌اند",
    "او در دانشگاه تهران درس می‌خواند و کار می‌کند",
    "برای ساختن این برنامه به چند ابزار نیاز دارید",
)
"""Written for this benchmark."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="of Alpaca")
    arguments = parser.parse_args()
    title("text")
    rates(alpaca(arguments.rows))
    false_alarms()
    catches()


def alpaca(most: int) -> list[list[str]]:
    """The texts of each row."""
    rows: list[list[str]] = []
    for path in sorted(data("instructions", "alpaca_52k").glob("*.json")):
        rows += ([text for text in row.values() if text] for row in json.loads(path.read_text()))
    return rows[:most]


def rates(rows: list[list[str]]) -> None:
    texts = [text for row in rows for text in row]
    skeletons = [skeleton(text) for text in texts]
    cut = [segments(source, 400, estimated_tokens) for source in skeletons]

    def all_of_it() -> None:
        for text in texts:
            source = skeleton(text)
            for segment in segments(source, 400, estimated_tokens):
                request = masked(source, segment)
                checks(request.text, request.text, SAME)
            shape_faults(source, text)

    manner = Manner(SAME, estimated_tokens)

    def ladder_of_it() -> None:
        for row in rows:
            steps, answers = ladder.translation(row, manner), None
            with contextlib.suppress(StopIteration):
                while True:
                    asks = next(steps) if answers is None else steps.send(answers)
                    answers = [Answer(manner.form.write(ask.texts, ask.roles)) for ask in asks]

    works: dict[str, Callable[[], object]] = {
        "skeleton": lambda: [skeleton(text) for text in texts],
        "cutting": lambda: [segments(source, 400, estimated_tokens) for source in skeletons],
        "masking": lambda: [
            masked(source, segment) for source, own in zip(skeletons, cut, strict=True) for segment in own
        ],
        "checks": lambda: [checks(text, text, SAME) for text in texts],
    }
    gc.freeze()  # what is kept for the measurements is not looked through during them
    works["the whole ladder, all answers good"] = ladder_of_it
    works["all of it, and the shape of the result"] = all_of_it
    taken = {name: core_seconds(work) for name, work in works.items()}
    *parts, whole = ((name, len(rows) / time) for name, time in taken.items())
    for name, rate in parts:
        report(f"rows/s of one core: {name}", rate, "rows/s", "", True)
    report(f"rows/s of one core: {whole[0]}", whole[1], "rows/s", "2,000", whole[1] >= 2_000)
    markdown, language_of = MarkdownIt("commonmark").enable("table"), pycld2.detect
    libraries = core_seconds(
        lambda: [(markdown.parse(text), language_of(text), markdown.parse(text)) for text in texts]
    )
    report("of the libraries' own time (markdown-it twice, CLD2 once)", libraries / taken[whole[0]], "", "", True)


def core_seconds(work: Callable[[], object]) -> float:
    """Median time of one core."""
    return seconds(work, 3, time.process_time)


def human(name: str) -> tuple[Pair, Pairs]:
    """A set of human translations."""
    if name == "Tatoeba en-ar":
        (stem,) = data("parallel", "tatoeba").glob("*.ara")
        labels = _lines(stem.with_name(f"{stem.name}.labels"))
        pairs = zip(_lines(stem.with_suffix(".eng")), _lines(stem), labels, strict=True)
        return ARABIC, [(source, target) for source, target, label in pairs if label == "ara"]
    folder = data("parallel", "flores200")
    pair, target = (ARABIC, "arb_Arab") if name == "FLORES en-ar" else (BASQUE, "eus_Latn")
    return pair, list(zip(_lines(folder / "eng_Latn.devtest"), _lines(folder / f"{target}.devtest"), strict=True))


HUMAN = ("FLORES en-ar", "FLORES en-eu", "Tatoeba en-ar")


def false_alarms() -> None:
    for name in HUMAN:
        pair, pairs = human(name)
        flagged = [flags(checks(source, target, pair)) for source, target in pairs]
        shares = Counter(flag for own in flagged for flag in own)
        worst = max(BOUNDS, key=lambda check: shares[check])
        share = 100 * shares[worst] / len(pairs)
        report(f"false alarms, {name}: the worst check ({worst})", share, "%", "at most 2 %", share <= 2)
        together = 100 * sum(map(bool, flagged)) / len(pairs)
        report(f"false alarms, {name}: any check", together, "%", "at most 5 %", together <= 5)


def catches() -> None:
    """Share of damaged copies of human translations and of structured texts that are flagged."""
    chance = random.Random(7)
    for name in HUMAN[:2]:
        pair, pairs = human(name)
        for damage, copies in damaged(pairs, pair, chance).items():
            wanted = {"language"} if damage.startswith("Persian") else set(BOUNDS)
            caught = (
                100 * sum(bool(wanted & {*flags(checks(source, copy, pair))}) for source, copy in copies) / len(copies)
            )
            report(f"caught, {name}: {damage} ({len(copies)})", caught, "%", "at least 95 %", caught >= 95)
    for damage, texts in structured(chance).items():
        caught = 100 * sum(bool(shape_faults(skeleton(text), copy)) for text, copy in texts) / len(texts)
        report(f"caught, by the shape: {damage} ({len(texts)})", caught, "%", "at least 95 %", caught >= 95)
    lost = list(turns_lost(chance))
    caught = 100 * sum(lost) / len(lost)
    report(f"caught, by verify: a turn lost ({len(lost)})", caught, "%", "at least 95 %", caught >= 95)
    answers = list(mmlu())
    caught = 100 * sum(bool(flags(checks(source, copy, ARABIC))) for source, copy in answers) / len(answers)
    report(f"caught, MMLU: the answer for the question ({len(answers)})", caught, "%", "at least 95 %", caught >= 95)


def damaged(pairs: Pairs, pair: Pair, chance: random.Random) -> dict[str, Pairs]:
    numbered = [(source, target) for source, target in pairs if re.search(r"\d", source) and re.search(r"\d", target)]
    copies: dict[str, Pairs] = {
        "English left in": [(source, source) for source, _ in pairs],
        "a loop": [(source, f"{target} {' '.join(target.split()[-3:] * 6)}") for source, target in pairs],
        "a number changed": [(source, _other_number(target, chance)) for source, target in numbered],
    }
    if pair is ARABIC:
        copies["Persian for Arabic"] = [(source, chance.choice(PERSIAN)) for source, _ in pairs]
    return copies


def _other_number(text: str, chance: random.Random) -> str:
    number = chance.choice([*re.finditer(r"\d+", text)])
    return f"{text[: number.start()]}{int(number[0]) + chance.randint(1, 9)}{text[number.end() :]}"


def structured(chance: random.Random) -> dict[str, list[tuple[str, str]]]:
    """Real texts with a fence or a list, and a copy without a line of it."""
    texts = [text for row in alpaca(60_000) for text in row]
    listed = [text for text in texts if len(re.findall(r"^\d+\. ", text, re.MULTILINE)) > 2][:1_000]
    fenced = [text for text in texts if text.count("```") >= 2]
    return {
        "a list item lost": [(text, _without_a_line(text, r"\d+\. ", chance)) for text in listed],
        "a fence dropped": [(text, text.replace("```", "", 1)) for text in fenced],
        "two items joined": [(text, re.sub(r"\n(?=2\. )", " ", text, count=1)) for text in listed],
    }


def turns_lost(chance: random.Random) -> Iterator[bool]:
    """Of each real conversation a copy without a turn: whether `hala verify` finds a fault in it."""
    recipe = Recipe(name="r", task=Options(target="English", suffix="_en"), engine=EngineOptions(kind="echo"))
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    work = InSegments(
        recipe,
        Shape(["conversations"], frozenset({"human", "gpt"}), is_talk=True),
        pa.schema([("conversations", pa.list_(turn))]),
    )
    for row in json.loads(data("multiturn", "llamafactory_glaive_toolcall_en_demo.json").read_text()):
        row = {"conversations": row["conversations"]}
        steps = work.do(row)
        requests = next(steps)
        try:
            while True:
                requests = steps.send([Completion("", request.last.split("\n\n", 1)[1]) for request in requests])
        except StopIteration as end:
            written = end.value
        said = [number for number, turn in enumerate(written["conversations_en"]) if turn["from"] in ("human", "gpt")]
        del written["conversations_en"][chance.choice(said)]
        yield any(True for _ in work.faults(row, written))


def _without_a_line(text: str, start: str, chance: random.Random) -> str:
    lines = text.split("\n")
    lines.pop(chance.choice([at for at, line in enumerate(lines) if re.match(start, line)]))
    return "\n".join(lines)


def mmlu() -> Iterator[tuple[str, str]]:
    """English questions, and the right answer in Arabic in the place of their translation."""
    import csv

    for path in sorted(data("arabic_bench", "mmlu_english", "test").glob("*.csv"))[:20]:
        arabic = next(
            iter(data("arabic_bench", "mmlu_arabic", "test").glob(f"{path.stem.split('_test')[0]}*.csv")), None
        )
        if arabic is None:
            continue
        with path.open() as english, arabic.open() as other:
            for source, target in zip(list(csv.reader(english))[1:], csv.reader(other), strict=False):
                if len(source[0]) >= 40 and target[5] in "ABCD":
                    yield source[0], target[1 + "ABCD".index(target[5])]


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


if __name__ == "__main__":
    main()
