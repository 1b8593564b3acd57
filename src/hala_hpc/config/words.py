"""Words around numbers."""


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 worker, 2,000 workers."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
