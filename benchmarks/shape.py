"""What of a text's shape survives bad translators: ours, the whole text with a plea in the prompt, and line by line.

The translators are functions that do what models do: reorder, drop, double and translate markers, add chatter, answer,
loop, stop early, think. They are asked for the same texts in three ways; counted is the share of protected spans that
come out byte for byte, and the share of spoiled texts that are flagged.
"""

import argparse
import contextlib
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from common import data, report, title

from hala_hpc.data.cut import estimated_tokens
from hala_hpc.text import ladder
from hala_hpc.text.checks import Pair
from hala_hpc.text.ladder import Answer, Manner, Rung
from hala_hpc.text.languages import language
from hala_hpc.text.skeleton import Skeleton, shape_faults, skeleton

Translator = Callable[[str], str]
MARKER = re.compile(r"[⟦⟪]\s*\d+\s*[⟧⟫]")
CODE = re.compile(r"`[^`\n]*`|\$[^$\n]*\$|https?://\S+|[{<][\w/ ]*[}>]")
"""What a translator may touch where nobody took it out."""
MANNER = Manner(Pair(language("en"), language("en")), estimated_tokens, rungs=(Rung.ALONE, Rung.APART))
"""The translators write the letters that they read."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=2_000, help="of each set of texts")
    arguments = parser.parse_args()
    title("shape")
    texts = [text for own in sets().values() for text in own[: arguments.texts]]
    sources = [source for source in map(skeleton, texts) if any(True for _ in source.protected())]
    print(f"{len(texts):,} texts, {len(sources):,} of them with protected spans")
    ways: dict[str, Callable[[str, Translator], tuple[str | None, bool]]] = {
        "ours": ours,
        "whole text": whole,
        "line by line": by_line,
    }
    for way, translate in ways.items():
        spans, intact, spoiled, flagged = 0, 0, 0, 0
        for translator in translators().values():
            for source in sources:
                written, is_flagged = translate(source.text, translator)
                total, kept = survivors(source, written)
                spans, intact = spans + total, intact + (kept if written is not None else total)
                if written is None or kept < total or shape_faults(source, written):
                    spoiled, flagged = spoiled + 1, flagged + is_flagged
        is_ours = way == "ours"
        share, told = 100 * intact / spans, 100 * flagged / max(1, spoiled)
        report(
            f"{way}: protected spans intact",
            share,
            "%",
            "at least 99.9 %" if is_ours else "",
            share >= 99.9 or not is_ours,
        )
        report(
            f"{way}: spoiled texts flagged", told, "%", "100 %" if is_ours else "", flagged == spoiled or not is_ours
        )


def sets() -> dict[str, list[str]]:
    """Real texts, shuffled, by where they are from."""
    alpaca = [
        t for p in sorted(data("instructions", "alpaca_52k").glob("*.json")) for row in _read(p) for t in row.values()
    ]
    turns = [
        turn["value"]
        for row in _read(data("multiturn", "llamafactory_glaive_toolcall_en_demo.json"))
        for turn in row["conversations"]
    ]
    chats = [
        turn["value"]
        for row in _read(data("multiturn", "fastchat_dummy_conversation.json"))
        for turn in row["conversations"]
    ]
    gsm8k = [json.loads(line)["answer"] for line in data("math_code", "gsm8k_train.jsonl").open()]
    code = [text for row in _read(data("math_code", "gpteacher_codegen-instruct.json")) for text in row.values()]
    found = {"Alpaca": alpaca, "GSM8K": gsm8k, "code instructions": code, "tool calls": turns, "chats": chats}
    found["reported by people"] = [
        text for path in sorted(data("..", "cases").glob("*.jsonl")) for line in _lines(path) for text in strings(line)
    ]
    for texts in found.values():
        random.Random(1).shuffle(texts)
    return {name: [text for text in texts if text] for name, texts in found.items()}


def _lines(path: Path) -> Iterator[object]:
    for line in path.read_text("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError):  # some of them are broken on purpose
            yield json.loads(line)


def strings(value: object) -> Iterator[str]:
    """All texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def _read(path: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(path.read_text())
    return rows


def survivors(source: Skeleton, written: str | None) -> tuple[int, int]:
    """Protected spans, and those of them that are in the translation."""
    needed = Counter(source.text_of(span) for span in source.protected())
    lost = sum(max(0, count - (written or "").count(span)) for span, count in needed.items())
    return needed.total(), needed.total() - lost


def ours(text: str, translate: Translator) -> tuple[str | None, bool]:
    steps = ladder.translation([text], MANNER)
    answers: list[Answer] | None = None
    while True:
        try:
            asks = next(steps) if answers is None else steps.send(answers)
        except StopIteration as end:
            texts = end.value.texts
            return texts and texts[0], bool(end.value.flags) or texts is None
        answers = [Answer(translate(MANNER.form.write(ask.texts, ask.roles))) for ask in asks]


def whole(text: str, translate: Translator) -> tuple[str | None, bool]:
    """What most scripts do: all of it in one prompt that asks to keep the format; flagged is what is empty."""
    written = translate(text)
    return written, not written.strip()


def by_line(text: str, translate: Translator) -> tuple[str | None, bool]:
    """Each line for itself, what stands in ``` fences not; an answer of several lines is joined."""
    lines, is_code = [], False
    for line in text.split("\n"):
        is_fence = line.lstrip().startswith("```")
        is_code ^= is_fence
        lines.append(line if is_code or is_fence or not line.strip() else " ".join(translate(line).split("\n")))
    return "\n".join(lines), False


def translators() -> dict[str, Translator]:
    """By name. Letters become capitals, but in what careful models keep: markers, inline code, formulas, addresses."""

    def good(text: str) -> str:
        return _outside(text, str.upper)

    def on_one(change: Callable[[str, re.Match[str]], str]) -> Translator:
        def translate(text: str) -> str:
            places = [*MARKER.finditer(text)] or [*CODE.finditer(text)]
            return good(change(text, _random(text).choice(places)) if places else text)

        return translate

    return {
        "good": good,
        "reverse": lambda text: "\n".join(" ".join(reversed(line.split(" "))) for line in text.split("\n")),
        "reorder": lambda text: _reordered(good(text)),
        "drop": on_one(lambda text, place: text[: place.start()] + text[place.end() :]),
        "double": on_one(lambda text, place: text[: place.end()] + place[0] + text[place.end() :]),
        "translate": on_one(
            lambda text, place: text[: place.start()] + _digits(place[0].upper()) + text[place.end() :]
        ),
        "chatter": lambda text: f"Sure! Here is the translation:\n\n{good(text)}",
        "answer": lambda text: f"{len(text)} is the answer.",
        "loop": lambda text: f"{good(text)} {'again and again ' * 40}",
        "early": lambda text: good(text[: len(text) // 2]),
        "thinking": lambda text: f"<think>\nLet me see.\n</think>\n\n{good(text)}",
    }


def _outside(text: str, change: Callable[[str], str]) -> str:
    parts, at = [], 0
    for kept in re.finditer(f"{MARKER.pattern}|{CODE.pattern}", text):
        parts += [change(text[at : kept.start()]), kept[0]]
        at = kept.end()
    return "".join([*parts, change(text[at:])])


def _reordered(text: str) -> str:
    places: Iterator[str] = iter(_random(text).sample(found, len(found)) if (found := MARKER.findall(text)) else ())
    return MARKER.sub(lambda _: next(places), text)


def _digits(text: str) -> str:
    return text.translate({48 + digit: 0x660 + digit for digit in range(10)} | {0x27E6: "[", 0x27E7: "]"})


def _random(text: str) -> random.Random:
    return random.Random(hashlib.blake2b(text.encode()).digest())


if __name__ == "__main__":
    main()
