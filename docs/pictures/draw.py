"""Draw what a command printed as a picture for the README.

make mini | .venv/bin/python docs/pictures/draw.py mini
"""

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
WIDTH = 110
STYLES = {r"^\$ .*": "cyan", r"\bdone\b|\bproven\b": "green"}
FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""Fonts that the picture would load from elsewhere; a reader's own monospaced font does."""


def main() -> None:
    """Read standard input, and write ``NAME.svg`` beside this file."""
    console = Console(record=True, width=WIDTH, file=sys.stderr, force_terminal=True)
    for line in sys.stdin.read().strip().splitlines():
        text = Text(line)
        for pattern, style in STYLES.items():
            text.highlight_regex(pattern, style)
        console.print(text, soft_wrap=False)
    (HERE / f"{sys.argv[1]}.svg").write_text(FONT.sub("", console.export_svg(title=f"make {sys.argv[1]}")), "utf-8")


if __name__ == "__main__":
    main()
