"""Which rows of a finished run are done again by another, where all others are kept, and why: for people and cards."""

import json
from pathlib import Path
from typing import Any, Final, TypedDict

from hala_hpc.config.errors import plural

MOST_CHARACTERS: Final = 200
"""Of a value of the recipe; a prompt may be long."""


class Earlier(TypedDict):
    """A run of which rows are kept: ``writer`` is the ``model`` section of its recipe, where it has one."""

    name: str
    made_by: dict[str, str]
    writer: dict[str, Any] | None


class Redo(TypedDict):
    """What some rows of a finished run are done again for, and which.

    ``rows`` were chosen, in so many ``shards``, by the condition ``where`` and by the reason ``quarantine`` that they
    were set aside for ('': any); None: not by it. ``changes`` has each key of the recipe that differs, with its value
    before and now; ``earlier`` all runs whose rows are kept, the oldest first, and ``path`` the last of them.
    """

    path: str
    where: str | None
    quarantine: str | None
    changes: dict[str, list[Any]]
    rows: int
    shards: int
    earlier: list[Earlier]


def chosen(redo: Redo) -> str:
    """Which rows are done again, in words."""
    reasons = [f"where {redo['where']}"] if redo["where"] is not None else []
    if (held := redo["quarantine"]) is not None:
        reasons.append("in quarantine" + (f" for '{held}'" if held else ""))
    count = f"{plural(redo['rows'], 'row')} in {plural(redo['shards'], 'shard')}"
    return f"{count} of {Path(redo['path']).name}, {' and those '.join(reasons)}"


def changes(redo: Redo, sections: tuple[str, ...] = ("",)) -> str:
    """What differs from the recipe of the earlier run in some sections, in words; '' where nothing does.

    Folders are named by their last part alone, and of long values only the beginning is said.
    """
    differing = {key: map(_short, values) for key, values in redo["changes"].items() if key.startswith(sections)}
    return ", ".join(f"{key}={now} (was {was})" for key, (was, now) in differing.items())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = Path(text).name if text.startswith("/") else text
    return text[:MOST_CHARACTERS] + "…" * (len(text) > MOST_CHARACTERS)
