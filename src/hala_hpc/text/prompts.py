"""How a text is put before a translator."""

TEXT = "{text}"


def problem_of(template: str) -> str | None:
    """Why a prompt template cannot be used; None where it can."""
    count = template.count(TEXT)
    return None if count == 1 else f"holds {TEXT} {count} times, it must hold it once"


def render(template: str, text: str, **words: str) -> str:
    """Fill ``{text}`` and the named words into a template; braces anywhere else, also in the text, mean nothing."""
    return place(template, text, **words)[0]


def place(template: str, text: str, **words: str) -> tuple[str, tuple[int, int]]:
    """``render``, and from where to where the text stands in the result."""
    before, after = (_filled(part, words) for part in template.split(TEXT))
    return f"{before}{text}{after}", (len(before), len(before) + len(text))


def _filled(part: str, words: dict[str, str]) -> str:
    for name, word in words.items():
        part = part.replace(f"{{{name}}}", word)
    return part
