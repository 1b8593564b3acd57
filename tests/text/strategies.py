"""Texts as people's datasets have them, put together from their parts, and any characters at all."""

from hypothesis import strategies as st

_WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
_PROSE = st.sampled_from(
    [
        "The quick brown fox.",
        "Is it 5 o'clock?",
        "It costs $5 and $10, i.e. 3.5% more.",
        "اكتب برنامجا بلغة Python.",
        "Idatzi programa bat, mesedez",
        "**Note:** see the _manual_",
        "a | b | c",
        "x < y and y > z",
    ]
)
_PROTECTED = st.sampled_from(
    [
        "`x = 1`",
        "``a ` b``",
        "$x^2$",
        "$$\\int_0^1 x\\,dx$$",
        "\\(a+b\\)",
        "\\[\na\n\nb\n\\]",
        "\\begin{align}\na &= b \\\\\n\\end{align}",
        "https://example.org/a_(b)?c=d#e.",
        "<https://example.org>",
        "me@example.org",
        "/usr/local/bin/python",
        "C:\\Users\\x",
        "main.py",
        "{name}",
        "{{ user }}",
        "%s",
        "%(n)d",
        "[[1]]",
        "<br>",
        '<a href="x">',
        "</a>",
        "&amp;",
        "<|im_end|>",
        "<<3*4=12>>",
        '{"a": [1, 2, {"b": null}]}',
        "[link](page.md#x)",
    ]
)
_BLOCK = st.sampled_from(
    [
        "```python\nprint('hi')\n```",
        "~~~~\n```\nx\n```\n~~~~",
        "````md\n```\ninner\n```\n````",
        "    indented = code()",
        "| a | b |\n|---|---|\n| 1 | two words |",
        "# Heading",
        "Title\n=====",
        "- item one\n- item two\n  - nested",
        "1. first\n2) second\n3.third",
        "> quoted\n> lines",
        "---",
        '{\n  "name": "x",\n\n  "list": [1,\n 2]\n}',
        "def f(x):\n    # say it\n    return x + 1",
        "<div>\n<p>Text</p>\n</div>",
        "<!-- a\ncomment -->",
        "[ref]: https://example.org",
        "```\nnever closed",
        "\t\ttabs",
    ]
)
_PART = st.one_of(_WORDS, _PROSE, _PROTECTED, _BLOCK)
_JOINT = st.sampled_from(["", " ", "\n", "\n\n", "\r\n", "\r", " \n \n", "\n> ", "\n  ", "\u2028", "، "])

texts = st.lists(st.tuples(_PART, _JOINT), max_size=12).map(lambda parts: "".join(map("".join, parts)))
"""Any text."""
