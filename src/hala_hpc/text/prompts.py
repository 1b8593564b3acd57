"""How a text is put before a translator."""

TEXT = "{text}"


def problem_of(template: str) -> str | None:
    """Why a prompt template cannot be used; None where it can."""
    count = template.count(TEXT)
    return None if count == 1 else f"holds {TEXT} {count} times, it must hold it once"


def render(template: str, text: str, **words: str) -> str:
    """Fill ``{text}`` and the named words into a template; braces anywhere else, also in the text, mean nothing."""
    before, after = (_filled(part, words) for part in template.split(TEXT))
    return f"{before}{text}{after}"


def _filled(part: str, words: dict[str, str]) -> str:
    for name, word in words.items():
        part = part.replace(f"{{{name}}}", word)
    return part
