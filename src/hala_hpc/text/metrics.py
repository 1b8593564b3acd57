"""How near translations are to their references: BLEU, chrF++, ROUGE-L, and how much of a text's structure is left.

All are metrics in sacrebleu's sense: each row has statistics, and the sum of them over any rows has a score. BLEU and
chrF++ are its own; the others give the mean of their rows, from 0 to 1. So intervals and paired tests are the same
for all of them, over the same choices of rows: those of ``sacrebleu --confidence`` and ``--paired-bs``.
"""

import unicodedata
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar, Final

import numpy as np
from sacrebleu.metrics.base import Metric, Score, Signature
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import _compute_p_value, estimate_ci

from hala_hpc.text import trees

SEED: Final = 12345
"""Of the choices of rows; sacrebleu's own."""
RESAMPLES: Final = 1000
"""Choices of rows for an interval or a paired test; sacrebleu's own."""

Statistics = list[float]
"""Of one row; what they are depends on the metric."""


class MeanSignature(Signature):
    """sacrebleu's form of a signature, for a metric that it does not have: with the version of what computes it."""

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__(args)
        for key, value in args["signed"].items():
            self.update(key, value)


class MeanOfRows(Metric):
    """A metric that is the mean of its rows' values. The statistics of a row are its value and 1."""

    _SIGNATURE_TYPE = MeanSignature
    NAME: ClassVar[str]

    def __init__(self, references: Sequence[str], signed: dict[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.signed = signed
        self._ref_cache = self._cache_references([references])

    @abstractmethod
    def value(self, hypothesis: str, reference: Any) -> float:
        """What a row is worth, from 0 to 1; ``reference`` is what ``prepared`` made of it."""

    def prepared(self, reference: str) -> Any:
        """What is computed of a reference once, for all systems."""
        return reference

    def _preprocess_segment(self, sent: str) -> str:
        return sent

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        return {"reference": self.prepared(refs[0])}

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict[str, Any]) -> Statistics:
        return [self.value(hypothesis, ref_kwargs["reference"]), 1.0]

    def _compute_score_from_stats(self, stats: Sequence[float]) -> Score:
        return Score(self.NAME, float(stats[0]) / float(stats[1]))

    def _aggregate_and_compute(self, stats: Sequence[Sequence[float]]) -> Score:
        return self._compute_score_from_stats([sum(column) for column in zip(*stats, strict=True)])


class RougeL(MeanOfRows):
    """F1 of the longest common subsequence of words (rouge-score), whose own tokenizer drops all but Latin letters."""

    NAME = "ROUGE-L"

    def __init__(self, references: Sequence[str]) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        self._scorer = RougeScorer(["rougeL"], tokenizer=self)
        super().__init__(references, {"score": "f1", "tok": "words", "version": version("rouge-score")})

    def tokenize(self, text: str) -> list[str]:
        """What rouge-score calls."""
        return words(text)

    def value(self, hypothesis: str, reference: str) -> float:
        return float(self._scorer.score(reference, hypothesis)["rougeL"].fmeasure)


class TreeSim(MeanOfRows):
    """How alike the trees of two texts' blocks are: 1 - distance / blocks of the larger tree, at least 0.

    TreeSim of arXiv 2512.05100 holds a document's XML elements against the reference's by the edit distance of Zhang
    and Shasha, scaled to 0 to 1. Here the tree is that of Markdown and HTML blocks (``text.trees``), its root is not
    counted (so an empty text has 0), and it may be the source's that is held against: a translation should keep it.
    """

    NAME = "TreeSim"

    def __init__(self, references: Sequence[str], of: str) -> None:
        super().__init__(references, {"tree": "blocks", "of": of, "version": version("zss")})

    def prepared(self, reference: str) -> trees.Block:
        return trees.tree(reference)

    def value(self, hypothesis: str, reference: trees.Block) -> float:
        return trees.aligned(reference, trees.tree(hypothesis)).similarity


class NodeChrF(TreeSim):
    """The mean chrF of the texts of blocks that lie upon each other; a block that is lost or added has 0.

    Node-chrF of arXiv 2512.05100 is the chrF of XML nodes that correspond. Here blocks correspond by the cheapest way
    from one tree to the other, those without a text of their own are left out, and chrF is sacrebleu's, by 100.
    """

    NAME = "Node-chrF"

    def __init__(self, references: Sequence[str]) -> None:
        self._chrf = CHRF()
        super().__init__(references, "reference")

    def value(self, hypothesis: str, reference: trees.Block) -> float:
        return _mean(list(self._values(trees.aligned(reference, trees.tree(hypothesis)))), empty=1.0)

    def _values(self, alignment: trees.Alignment) -> Iterator[float]:
        for mine, other in alignment.pairs:
            wanted, text = (block.text if block else "" for block in (mine, other))
            if wanted or text:
                yield self._chrf.sentence_score(text, [wanted]).score / 100 if wanted and text else 0.0


@dataclass(frozen=True)
class Kind:
    """A metric: its name for people, digits after the point, and how it is made of references and sources."""

    label: str
    digits: int
    make: Callable[[Sequence[str], Sequence[str] | None], Metric]


KINDS: Final[dict[str, Kind]] = {
    "bleu": Kind("BLEU", 2, lambda references, _: BLEU(references=[references])),
    "chrf": Kind("chrF++", 2, lambda references, _: CHRF(word_order=2, references=[references])),
    "rouge_l": Kind("ROUGE-L", 4, lambda references, _: RougeL(references)),
    "tree_sim": Kind(
        "TreeSim",
        4,
        lambda references, sources: TreeSim(sources or references, "source" if sources else "reference"),
    ),
    "node_chrf": Kind("Node-chrF", 4, lambda references, _: NodeChrF(references)),
}
"""By the names that recipes and the command line use."""
DEFAULT: Final = ("bleu", "chrf", "rouge_l")


Resampled = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Scored:
    """A system by one metric: its score, and the scores over choices of rows (none where they were not wanted).

    Those are as precise as sacrebleu computes them: of chrF++ float32.
    """

    score: float
    resampled: Resampled

    def interval(self, is_paired: bool) -> tuple[float, float] | None:
        """The mean over the choices of rows, and half the width of the 95 % interval around it.

        sacrebleu computes the mean in two ways, for one system and for a paired test; so does this.
        """
        if not len(self.resampled):
            return None
        if is_paired:
            mean, half = estimate_ci(self.resampled)
            return float(mean), float(half)
        score = Score("", self.score)
        score.estimate_ci([Score("", value) for value in self.resampled])
        return float(score._mean), float(score._ci)

    def p_value(self, baseline: "Scored") -> float:
        """Of the difference to another system, both over the same rows: sacrebleu's paired bootstrap test.

        1 where there is no difference at all, for which sacrebleu has its smallest value.
        """
        differences = np.abs(self.resampled - baseline.resampled)
        if not differences.any():
            return 1.0
        return float(_compute_p_value(differences - differences.mean(), abs(baseline.score - self.score)))


def statistics(metric: Metric, hypotheses: Sequence[str]) -> list[Statistics]:
    """The statistics of each row, in the order of the references that the metric was made of."""
    rows: list[Statistics] = metric._extract_corpus_statistics(hypotheses, None)
    return rows


def scored(
    metric: Metric, rows: Sequence[Statistics], resamples: int = 0, between: Callable[[], None] = lambda: None
) -> Scored:
    """The score of some rows, and of ``resamples`` choices of as many among them; ``between`` them may raise.

    The numbers are those of ``sacrebleu.significance``, which holds all choices in memory at once: 1.3 GB for 14,000
    rows of chrF++.
    """
    score = float(metric._aggregate_and_compute(list(rows)).score)
    random, table, scores = np.random.default_rng(SEED), np.array(rows, "float32"), []
    for _ in range(resamples):
        between()
        chosen = random.choice(len(rows), size=len(rows), replace=True)
        scores.append(metric._compute_score_from_stats(table[chosen].sum(0)).score)
    return Scored(score, np.array(scores))


def row_scores(metric: Metric, rows: Sequence[Statistics]) -> list[float]:
    """The score of each row alone; BLEU takes only the orders of n-grams that a row is long enough for."""
    alone = BLEU(effective_order=True) if isinstance(metric, BLEU) else metric
    return [float(alone._compute_score_from_stats(row).score) for row in rows]


def signature(metric: Metric, resamples: int = 0) -> str:
    """What the score depends on besides the texts, as sacrebleu writes it."""
    metric.n_bootstrap, metric.seed = (resamples, str(SEED)) if resamples else (None, None)
    return str(metric.get_signature())


def words(text: str) -> list[str]:
    """The words of a text in any script: letters, digits and the marks on them, in lower case.

    After NFKC; without the marks that Arabic and Hebrew may leave out, without tatweel and invisible characters.
    """
    return unicodedata.normalize("NFKC", text).lower().translate(_KEPT).split()


class _Kept(dict[int, str]):
    """What becomes of each character, worked out when it is first seen."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind, name = unicodedata.category(character), unicodedata.name(character, "")
        is_left_out = (
            kind == "Cf" or name == "ARABIC TATWEEL" or (kind == "Mn" and name.startswith(("ARABIC", "HEBREW")))
        )
        self[code] = "" if is_left_out else character if kind[0] in "LMN" else " "
        return self[code]


_KEPT: Final = _Kept()


def _mean(values: Sequence[float], empty: float) -> float:
    return sum(values) / len(values) if values else empty
