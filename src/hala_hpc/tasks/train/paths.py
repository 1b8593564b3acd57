"""Where the files of a training stand in its run directory."""

from typing import Final

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
