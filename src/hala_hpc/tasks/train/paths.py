"""Where the files of a training stand in its run directory, and how the small ones are read."""

import json
from pathlib import Path
from typing import Any, Final

INDEX: Final = "training/index"
CHECKPOINTS: Final = "training/checkpoints"
RANKS: Final = "training/ranks"
FAILURE: Final = "training/failure.json"
REPORT: Final = "training/report.json"
EXPORTED: Final = "partial/000/000000.export"
"""The finished model before the launcher publishes it."""
STACKS: Final = "training/stacks"
"""Where each rank stood when the training hung."""
PREFLIGHT: Final = "training/preflight"
"""What each launch found out about its nodes."""
RANK_LOGS: Final = "logs/ranks"


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON file; None where it is missing or cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
