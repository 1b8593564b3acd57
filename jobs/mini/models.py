"""Make the tiny models of Hala in miniature: llamas with random weights and a tokenizer of the sentences. No download.

    .envs/serve-cpu/bin/python jobs/mini/models.py [FOLDER]

The same script and data give the same weights each time; models that are there already are kept.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "demo"))

import tiny_model  # noqa: E402 (it lies beside the demo)

TEXT = (HERE / "data" / "pairs.jsonl", HERE.parent / "prompts" / "hala-light.yaml")
"""What the tokenizer is trained on."""
SHAPE: dict[str, Any] = {"vocab": 1500, "hidden": 192, "layers": 4, "heads": 6, "max_positions": 256}
"""Two million parameters (ours): fewer learn the sentences slower, more take longer for a step."""
LEARNS = {"weight_std": 0.02}
MODELS: dict[str, dict[str, Any]] = {
    "translator-base": {"seed": 1, **LEARNS},
    "chat-base": {"seed": 2, **LEARNS},
    "teacher": {"seed": 3, "dtype": "bfloat16", "files": 2},
}
"""By name, what is its own. The teacher is only quantized and compared: it never learns."""


def build(folder: Path) -> list[Path]:
    """Build the models in ``folder``, and return them. Raises FileExistsError where another one has the name of one."""
    return [tiny_model.build(folder / name, text=TEXT, **SHAPE, **own) for name, own in MODELS.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=HERE / "models")
    for model in build(parser.parse_args().folder):
        print(model)


if __name__ == "__main__":
    main()
