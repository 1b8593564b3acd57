"""The rules of judging, without a model: what they see of damaged translations, and what they cost good ones.

500 human translations (Tatoeba, Standard Arabic) and 500 damaged ones, 50 of each of ten kinds. Three kinds no rule is
made for, as their text is fluent, complete and about as long: these are what a model is asked for.
"""

import argparse
import random
import re
from collections import Counter
from collections.abc import Sequence

from common import data, report, seconds, title
from text import ARABIC, PERSIAN, Pairs, human

from hala_hpc.data.outputs.judgements import auc
from hala_hpc.text.rules import LONG, PAIRS, broken

GOOD = 500
UNSEEN = ("another's translation", "its words in another order", "a word left out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=50, help="damaged pairs of each kind")
    arguments = parser.parse_args()
    title("judge")
    _, pairs = human("Tatoeba en-ar")
    chance = random.Random(7)
    drawn = chance.sample(pairs, len(pairs))
    good, rest = drawn[:GOOD], drawn[GOOD:]
    kept = [not reasons(pair) for pair in good]
    share = 100 * sum(kept) / len(kept)
    report(f"kept: good pairs ({len(good)})", share, "%", "at least 98 %", share >= 98)
    share = 100 * sum(not reasons(pair) for pair in drawn) / len(drawn)
    report(f"kept: all of them ({len(drawn):,})", share, "%", "at least 98 %", share >= 98)
    found: dict[str, list[bool]] = {}
    for kind, copies in damaged(rest, arguments.each, chance).items():
        own = [reasons(pair) for pair in copies]
        found[kind] = [bool(rules) for rules in own]
        share = 100 * sum(found[kind]) / len(own)
        most = ", ".join(
            f"{rule} {count}" for rule, count in Counter(rules[0] for rules in own if rules).most_common(3)
        )
        print(f"    {kind} ({len(own)}): {most or 'none'}")
        bar = "" if kind in UNSEEN else "at least 90 %"
        report(f"rejected: {kind}", share, "%", bar, not bar or share >= 90)
    seen = [flag for kind, own in found.items() if kind not in UNSEEN for flag in own]
    share = 100 * sum(seen) / len(seen)
    report(f"rejected: what rules are made for ({len(seen)})", share, "%", "at least 90 %", share >= 90)
    all_of_it = [flag for own in found.values() for flag in own]
    report(f"rejected: all damaged pairs ({len(all_of_it)})", 100 * sum(all_of_it) / len(all_of_it), "%", "", True)
    area = auc(list(map(float, kept)), [float(not flag) for flag in all_of_it]) or 0.0
    report("AUC of the rules alone, good against all damaged pairs", area, "", "", True)
    rate = len(good) / seconds(lambda: [reasons(pair) for pair in good], 3)
    report("pairs/s of one core", rate, "pairs/s", "", True)


def reasons(pair: tuple[str, str]) -> list[str]:
    return broken(*pair, ARABIC, PAIRS)


def damaged(pairs: Pairs, each: int, chance: random.Random) -> dict[str, Pairs]:
    """Damaged copies of pairs that can have the damage: with a number, or long enough to be cut."""
    numbered = [pair for pair in pairs if all(re.search(r"\d", text) for text in pair)]
    long = [pair for pair in pairs if len(pair[0]) >= LONG]
    wordy = [pair for pair in pairs if len(pair[1].split()) >= 5]
    basque = (data("basque") / "tatoeba-test-v2021-08-07.eng-eus.eus").read_text("utf-8").splitlines()
    basque = [text for text in basque if len(text) >= 25]

    def copies(own: Pairs) -> Pairs:
        return chance.sample(list(own), min(each, len(own)))

    others = copies(pairs)
    return {
        "the source for its translation": [(source, source) for source, _ in copies(pairs)],
        "nothing for its translation": [(source, chance.choice(["", " ", "...", "-"])) for source, _ in copies(pairs)],
        "a loop at its end": [
            (source, f"{target} {' '.join(target.split()[-3:] * 6)}") for source, target in copies(pairs)
        ],
        "Persian for Arabic": [(source, chance.choice(PERSIAN)) for source, _ in copies(pairs)],
        "Basque for Arabic": [(source, chance.choice(basque)) for source, _ in copies(pairs)],
        "a number changed": [(source, _other_number(target, chance)) for source, target in copies(numbered)],
        "cut in the middle": [(source, target[: len(target) // 2]) for source, target in copies(long)],
        UNSEEN[0]: [(one[0], other[1]) for one, other in zip(others, [*others[1:], others[0]], strict=True)],
        UNSEEN[1]: [(source, _shuffled(target, chance)) for source, target in copies(wordy)],
        UNSEEN[2]: [(source, _without_a_word(target, chance)) for source, target in copies(wordy)],
    }


def _other_number(text: str, chance: random.Random) -> str:
    number = chance.choice([*re.finditer(r"\d+", text)])
    return f"{text[: number.start()]}{int(number[0]) + chance.randint(1, 9)}{text[number.end() :]}"


def _shuffled(text: str, chance: random.Random) -> str:
    *words, last = text.split()
    return " ".join([*chance.sample(words, len(words)), last])


def _without_a_word(text: str, chance: random.Random) -> str:
    words: Sequence[str] = text.split()
    lost = chance.randrange(len(words) - 1)
    return " ".join([*words[:lost], *words[lost + 1 :]])


if __name__ == "__main__":
    main()
