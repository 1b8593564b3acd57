"""The Hugging Face hub: fetched once on the login node, read from the cache ever after."""

import os
from pathlib import Path

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data, Model

NOT_NEEDED = ["*.pth", "*.gguf", "*.onnx", "original/*", "*.msgpack", "*.h5"]
"""Copies of the weights that no engine of ours reads."""


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

    folders = []
    for name in filter(is_on_hub, dict.fromkeys([model.name, model.tokenizer or ""])):
        revision = model.revision if name == model.name else None
        try:
            folders.append(snapshot_download(name, revision=revision, ignore_patterns=NOT_NEEDED))
        except RepositoryNotFoundError as error:
            raise HalaError(f"model.name: no model '{name}' on the hub", "gated models need `hf auth login`") from error
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise HalaError(
                f"cannot download '{name}': {_first_line(error)}", "is the hub reachable from here?"
            ) from error
    return folders


def fetch_dataset(data: Data) -> int:
    """Download and prepare a dataset's split. Returns its number of rows."""
    import datasets

    try:
        return len(datasets.load_dataset(data.hub, data.hub_config, split=data.split, revision=data.revision))
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise HalaError(f"data.hub: cannot download '{data.hub}': {_first_line(error)}") from error


def require_cached(model: Model) -> None:
    """Refuse a model that compute nodes without internet would not find. Raises HalaError."""
    from huggingface_hub import try_to_load_from_cache

    for name in filter(is_on_hub, (model.name, model.tokenizer or "")):
        revision = model.revision if name == model.name else None
        if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            raise HalaError(
                f"model '{name}' is not in the cache, and the site is offline", "`hala prefetch RECIPE` first"
            )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
