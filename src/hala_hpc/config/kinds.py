"""The open sections of a recipe: their ``kind`` names a module of a room, so a new task or engine is a new file."""

import importlib
import pkgutil
from collections.abc import Collection
from dataclasses import dataclass
from types import ModuleType

from hala_hpc.config.errors import HalaError, did_you_mean


@dataclass(frozen=True)
class Kinds:
    """The modules of the package ``room`` that a recipe's ``section`` may name: all but its ``helpers``."""

    section: str
    room: str
    helpers: Collection[str]

    def names(self) -> list[str]:
        """What there is, found by looking at the room's files; nothing is imported but the room itself."""
        found = pkgutil.iter_modules(importlib.import_module(self.room).__path__)
        return [module.name for module in found if module.name not in self.helpers]

    def load(self, kind: str) -> ModuleType:
        """The module of a kind. Raises HalaError listing the kinds there are."""
        if kind not in self.names():
            raise HalaError(f"{self.section}.kind: no {self.section} '{kind}'", did_you_mean(kind, self.names()))
        return importlib.import_module(f"{self.room}.{kind}")
