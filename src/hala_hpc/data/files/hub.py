"""The Hugging Face hub: fetched once on the login node, read from the cache ever after."""

import errno
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError, first_line
from hala_hpc.config.schema import Data, Model

PREFETCH: Final = "`hala prefetch RECIPE` where the hub can be reached"
"""What to do about a model or a dataset that is not in the cache."""
NOT_NEEDED = ["*.pth", "*.gguf", "*.onnx", "original/*", "*.msgpack", "*.h5"]
"""Copies of the weights that no engine of ours reads."""
STREAMED_ROWS: Final = 100_000
"""For more rows than these (ours) it pays to have the dataset in the cache."""
REACH_SECONDS: Final = 5.0
"""A hub that is silent for so long is out of reach."""


def use_cache(folder: str | None, offline: bool = False) -> None:
    """Have the hub's libraries use a site's cache. To be called before they are imported."""
    if folder:
        os.environ["HF_HOME"] = folder
    if offline:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"


def is_on_hub(name: str) -> bool:
    """Whether a model or dataset is a name on the hub, and not a folder."""
    return bool(name) and not name.startswith("/") and not Path(name).is_dir()


def fetch_model(model: Model) -> list[str]:
    """Download a model and its tokenizer, going on where an earlier download broke off. Returns their folders."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    go_offline_if_out_of_reach([model.name, model.tokenizer])
    folders = []
    for name, revision in _on_hub(model).items():
        try:
            folders.append(snapshot_download(name, revision=revision, ignore_patterns=NOT_NEEDED))
        except RepositoryNotFoundError as error:
            raise HalaError(f"model.name: no model '{name}' on the hub", "gated models need `hf auth login`") from error
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise HalaError(
                f"cannot download '{name}': {first_line(error)}", "is the hub reachable from here?"
            ) from error
    return folders


def _on_hub(model: Model) -> dict[str, str | None]:
    """The revisions of a model and its tokenizer by name, if they are on the hub."""
    revisions = {model.tokenizer or "": None, model.name: model.revision}
    return {name: revision for name, revision in reversed(revisions.items()) if is_on_hub(name)}


def to_parquet(data: Data, target: Path, rows_per_group: int) -> None:
    """Copy a split of a hub dataset (from the cache, where it is there) to Parquet.

    Where ``data.limit`` is small, only the first rows are fetched, and nothing is built in the cache. Raises HalaError.
    """
    is_small = data.limit is not None and data.limit <= STREAMED_ROWS
    go_offline_if_out_of_reach([data.hub])
    if is_small and (not _is_offline() or not is_on_hub(data.hub or "")) and _stream(data, target, rows_per_group):
        return
    rows = _load(data)
    if data.limit is not None:
        rows = rows.select(range(min(data.limit, len(rows))))
    rows.to_parquet(str(target), batch_size=rows_per_group)


def fetch_dataset(data: Data) -> int:
    """Download and prepare a dataset's split. Returns its number of rows. Raises HalaError."""
    go_offline_if_out_of_reach([data.hub])
    return len(_load(data))


def _load(data: Data) -> Any:
    import datasets

    try:
        return datasets.load_dataset(data.hub, data.hub_config, split=data.split or "train", revision=data.revision)
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if not is_on_hub(data.hub or ""):
            raise HalaError(f"data.hub: cannot load '{data.hub}': {first_line(error)}") from error
        raise HalaError(f"data.hub: cannot load '{data.hub}': {why(error)}", PREFETCH) from error


def _stream(data: Data, target: Path, rows_per_group: int) -> bool:
    """Copy the first rows without the rest. False where that is not possible: some datasets must be loaded whole."""
    import datasets

    try:
        split = data.split or "train"
        rows = datasets.load_dataset(data.hub, data.hub_config, split=split, revision=data.revision, streaming=True)
        return int(rows.take(data.limit).to_parquet(str(target), batch_size=rows_per_group)) > 0
    except Exception as error:  # any reader of any format; loading it whole then shows what is wrong
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False


def go_offline_if_out_of_reach(names: Iterable[str | None]) -> None:
    """The libraries go straight to the cache where the hub does not answer, instead of trying for half a minute.

    Asks only where one of ``names`` is on the hub. It holds for this process, not for those that it starts.
    """
    if not any(is_on_hub(name or "") for name in names):
        return
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and not _is_reachable(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
    if constants.HF_HUB_OFFLINE and "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@cache
def _is_reachable(endpoint: str) -> bool:
    """Whether anything answers there, through a proxy where one is set; the answer itself does not matter."""
    from httpx import HTTPError, InvalidURL
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=REACH_SECONDS)
    except (HTTPError, InvalidURL, OSError, ValueError):
        return False
    return True


def why(error: Exception) -> str:
    """Why something of the hub could not be had, in words; the libraries' own speak of their settings."""
    return "it is not in the cache, and the hub is out of reach" if _is_offline() else first_line(error)


def require_cached(model: Model) -> None:
    """Refuse a model that compute nodes without internet would not find. Raises HalaError."""
    from huggingface_hub import try_to_load_from_cache

    for name, revision in _on_hub(model).items():
        if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            raise HalaError(
                f"model '{name}' is not in the cache, and the site is offline", "`hala prefetch RECIPE` first"
            )
