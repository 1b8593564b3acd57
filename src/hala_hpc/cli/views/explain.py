"""What ``hala explain`` shows: a row's texts and numbers, and its requests as they were sent."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from hala_hpc.cli import common
from hala_hpc.cli.views.sample import harmless, lines_of, row_lines
from hala_hpc.data.outputs.chosen import SampledRow
from hala_hpc.data.schema import Row
from hala_hpc.engines.base import Request
from hala_hpc.pipeline.explain import Explained


def shown(explained: Explained, suffix: str, digest: str, console: Console) -> Iterator[object]:
    """The row as `hala sample` has it, what did it, and each request with its answer's fate."""
    yield from row_lines(SampledRow(explained.shard.id, explained.table), suffix, console)
    model = explained.recipe.model
    yield common.facts(
        [
            ("run", str(explained.run)),
            ("model", " ".join(filter(None, (model.name, model.revision, digest))) or explained.recipe.engine.kind),
            *((key.replace("_", " "), value) for key, value in explained.made_by.items()),
        ]
    )
    if not explained.is_whole:
        yield Text("\nThe first requests; a run keeps no more of such a row:", style="dim")
    for number, (request, known) in enumerate(explained.sent, 1):
        yield Text(f"\nrequest {number}: {harmless(', '.join(_known(request, known)))}", style="bold")
        for role, content in _turns(request):
            yield Text(f"{role}:", style="dim")
            yield lines_of(content, console.width, console)


def _known(request: Request, known: Row) -> Iterator[str]:
    if known:
        yield f"{known['rung']}, attempt {known['attempt']}"
        yield f"{known['prompt_tokens']:,} tokens in, {known['output_tokens']:,} out ({known['finish_reason']})"
    yield f"seed {request.seed}, temperature {request.temperature:g}"
    if known:
        yield known["outcome"] or "good"


def _turns(request: Request) -> Iterator[tuple[str, str]]:
    if isinstance(request.prompt, str):
        yield "prompt", request.prompt
    else:
        yield from ((message.role, message.content) for message in request.prompt)


def as_json(explained: Explained, digest: str) -> dict[str, Any]:
    """The same for scripts."""
    sampled, model = SampledRow(explained.shard.id, explained.table), explained.recipe.model
    return {
        "run": str(explained.run),
        "shard": explained.shard.id,
        "row": sampled.row,
        "made_by": explained.made_by,
        "model": {"name": model.name, "revision": model.revision, "digest": digest or None},
        "whole": explained.is_whole,
        "requests": [
            known | {"seed": request.seed, "temperature": request.temperature, "prompt": list(_turns(request))}
            for request, known in explained.sent
        ],
    }
