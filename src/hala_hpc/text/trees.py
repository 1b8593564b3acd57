"""A text as the tree of its blocks, and how two such trees lie upon each other.

Blocks are those of CommonMark with GitHub's tables, as ``text.skeleton`` has them, and the elements of HTML blocks.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Final

from hala_hpc.text.skeleton import parser

MOST_BLOCKS: Final = 150
"""Of a text whose tree differs from the other one's, that are laid upon each other (ours: the distance takes the square
of them in memory). What comes after them counts as lost or added.
"""
DEEPEST: Final = 20
"""Levels of HTML; what is deeper hangs at the last (ours, as deep as CommonMark's parser goes)."""
_VOID: Final = frozenset(("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"))
"""Elements of HTML without an end."""


@dataclass(eq=False)
class Block:
    """A block by its kind (p, li, h2, fence:python, …), with the text that is in it alone, and the blocks in it."""

    kind: str
    text: str = ""
    children: list["Block"] = field(default_factory=list)

    def walk(self) -> Iterator[tuple[int, "Block"]]:
        """All blocks below this one with their depth, in the order of the text."""
        waiting = [(1, child) for child in reversed(self.children)]
        while waiting:
            depth, block = waiting.pop()
            yield depth, block
            waiting += [(depth + 1, child) for child in reversed(block.children)]


Pair = tuple[Block | None, Block | None]
"""A block of one tree and the one of the other that it lies upon; None for one that is lost or added."""


@dataclass(frozen=True)
class Alignment:
    """How one tree becomes another: ``distance`` blocks lost, added or of another kind, of ``size`` in the larger."""

    distance: int
    size: int
    pairs: tuple[Pair, ...]

    @property
    def similarity(self) -> float:
        """TreeSim: 1 for the same tree, 0 where as many blocks changed as there are, or more."""
        return max(0.0, 1 - self.distance / self.size) if self.size else 1.0


def tree(text: str) -> Block:
    """The blocks of a text, below one that stands for all of it."""
    root = Block("text")
    open_blocks = [root]
    for token in parser().parse(text):
        if token.nesting < 0:
            open_blocks.pop()
        elif token.type == "inline":
            open_blocks[-1].text = token.content.strip()
        else:
            language = token.info.split()[:1]
            block = Block(":".join([token.tag or token.type] if not language else ["fence", *language]))
            open_blocks[-1].children.append(block)
            if token.nesting > 0:
                open_blocks.append(block)
            elif token.type == "html_block":
                _Elements(block).read(token.content)
            else:
                block.text = token.content.strip()
    return root


class _Elements(HTMLParser):
    """Puts the elements of HTML below a block; what is not closed, or was never open, does no harm."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self._open = [block]

    def read(self, text: str) -> None:
        """All of it, as far as it can be read."""
        with suppress(AssertionError):  # which the parser raises for a declaration that it does not know
            self.feed(text)
            self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        del attrs
        block = Block(tag)
        self._open[-1].children.append(block)
        if tag not in _VOID and len(self._open) < DEEPEST:
            self._open.append(block)

    def handle_endtag(self, tag: str) -> None:
        kinds = [block.kind for block in self._open]
        if tag in kinds[1:]:
            del self._open[len(kinds) - 1 - kinds[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        self._open[-1].text = f"{self._open[-1].text} {data.strip()}".strip()


def aligned(one: Block, other: Block) -> Alignment:
    """The cheapest way from one tree to the other, by the edit distance of Zhang and Shasha (zss).

    Losing, adding or renaming a block costs 1. Of several ways that cost the same, one that lays blocks with common
    words upon each other is taken, so that it is known which item of a list was lost.
    """
    mine, others = list(one.walk()), list(other.walk())
    size = max(len(mine), len(others))
    if [(depth, block.kind) for depth, block in mine] == [(depth, block.kind) for depth, block in others]:
        same = zip((block for _, block in mine), (block for _, block in others), strict=True)
        return Alignment(0, size, tuple(same))
    import zss

    kept = {id(block) for blocks in (mine, others) for _, block in blocks[:MOST_BLOCKS]}
    words = {id(block): set(block.text.split()) for _, block in (*mine, *others)} | {id(one): set(), id(other): set()}
    least = 0.5 / (len(mine) + len(others) + 1)  # so that all of them together are less than one block

    def renamed(block: Block, name: Block) -> float:
        a, b = words[id(block)], words[id(name)]
        return (block.kind != name.kind) + least * (1 - (2 * len(a & b) / (len(a) + len(b)) if a or b else 1))

    cost, steps = zss.distance(
        one,
        other,
        lambda block: [child for child in block.children if id(child) in kept],
        insert_cost=lambda _: 1,
        remove_cost=lambda _: 1,
        update_cost=renamed,
        return_operations=True,
    )
    # Of the blocks that are lost or added the steps name not all (zss 1.2): they are those that lie upon no other.
    pairs: list[Pair] = [(step.arg1, step.arg2) for step in steps if step.arg1 not in (None, one) and step.arg2]
    pairs = [pair for pair in pairs if pair[1] is not other]
    paired = {id(block) for pair in pairs for block in pair}
    pairs += [(block, None) for _, block in mine if id(block) not in paired]
    pairs += [(None, block) for _, block in others if id(block) not in paired]
    beyond = max(0, len(mine) - MOST_BLOCKS) + max(0, len(others) - MOST_BLOCKS)
    return Alignment(round(cost) + beyond, size, tuple(pairs))
