"""Data that moved after their run was planned: RUN/moved.json tells where each file is now."""

import json
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.data.files import sources
from hala_hpc.run.files import write_durably
from hala_hpc.run.manifest import Facts

NAME: Final = "moved.json"


def place_of(run: Path, source: str) -> Path:
    """Where a source of the manifest is now. Raises HalaError where RUN/moved.json cannot be read."""
    try:
        moved: dict[str, str] = json.loads((run / NAME).read_bytes())
        return run / moved.get(source, source)
    except FileNotFoundError:
        return run / source
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise HalaError(
            f"{run / NAME} cannot be read: {error}", f"`hala resume {run} data.path=…` writes it anew"
        ) from error


def note(run: Path, facts: Facts, data: Data) -> int:
    """Note that a run's files are now those of ``data``; how many there are.

    Files are the same if they are as large and, where there are several, have the same names in the same order. Their
    content is known by the digest of each shard, which whoever reads it looks at. What the run has a copy of is not
    asked for. Raises HalaError where a file is another one or missing.
    """
    now = sources.resolve(data)
    moved = {}
    for number, source in enumerate(facts.sources):
        before = Path(source["path"])
        if not before.is_absolute():
            continue
        if number >= len(now):
            raise HalaError(
                f"data.path: {before.name} is not there", "a run goes on with the files it was planned with"
            )
        after, size = now[number], now[number].stat().st_size
        if size != source["bytes"] or (len(facts.sources) > 1 and after.name != before.name):
            raise HalaError(
                f"data.path: {after} ({size:,} bytes) is not {before} ({source['bytes']:,} bytes)",
                "a run goes on with the files it was planned with; plan a new run for others",
            )
        moved[str(source["path"])] = str(after)
    write_durably(run / NAME, json.dumps(moved, indent=1).encode())
    return len(moved)
