"""The open sections of a recipe: their ``kind`` names a module of a room, so a new task or engine is a new file."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from hala_hpc.config.errors import HalaError, did_you_mean


@dataclass(frozen=True)
class Kinds:
    """What a recipe's ``section`` may name: ``modules`` gives the module of each kind, and imports none of them."""

    section: str
    modules: Callable[[], Mapping[str, str]]

    def names(self) -> list[str]:
        """The kinds there are."""
        return sorted(self.modules())

    def load(self, kind: str) -> ModuleType:
        """The module of a kind. Raises HalaError listing the kinds there are."""
        modules = self.modules()
        if kind not in modules:
            raise HalaError(f"{self.section}.kind: no {self.section} '{kind}'", did_you_mean(kind, sorted(modules)))
        return importlib.import_module(modules[kind])
