"""How long a person waits for the command line: process start included."""

import subprocess
import sys
import tempfile
from pathlib import Path

from common import HALA, quiet, report, seconds, title


def main() -> None:
    title("startup")
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "small.yaml")
        Path(folder, "rows.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(200)))
        recipe.write_text(
            "name: small\ntask: {kind: translate}\ndata: {path: rows.jsonl}\nengine: {kind: echo}\n"
            "run: {shard_rows: 20}\n"
        )
        quiet(*HALA, "plan", recipe, "--create", cwd=Path(folder))
        run = Path(folder, "runs", "small")
        quiet(sys.executable, "-m", "hala_hpc.worker", run)
        bare = seconds(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), 9)
        hala = Path(sys.executable).with_name("hala")
        helped = seconds(lambda: quiet(hala, "--help"), 9)
        status = seconds(lambda: quiet(hala, "status", run), 9)
    report("python -c pass (the limit)", bare, "s", "", True)
    report("hala --help", helped, "s", "under 0.15 s", helped < 0.15)
    report("hala status of a small run", status, "s", "under 0.5 s", status < 0.5)


if __name__ == "__main__":
    main()
