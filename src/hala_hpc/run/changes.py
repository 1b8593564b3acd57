"""Write down what a person changes of a frozen recipe when the run goes on (``config.frozen`` reads it)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hala_hpc.config.frozen import FOLDER, files
from hala_hpc.run.files import beside, fsync_directory, fsync_file


def write(run: Path, changed: Mapping[str, Any]) -> Path | None:
    """Write down changed keys, so that every worker that starts from now on has them. None where there are none."""
    from omegaconf import OmegaConf

    from hala_hpc.config.compose import literal

    if not changed:
        return None
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    temporary = beside(folder / "change.yaml")
    try:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(literal(dict(changed)))), "utf-8")
        fsync_file(temporary)
        while True:
            last = int(found[-1].stem) if (found := files(run)) else 0
            path = folder / f"{last + 1:03d}.yaml"
            try:
                path.hardlink_to(temporary)
                break
            except FileExistsError:
                continue  # somebody else resumes it too
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(folder)
    return path
