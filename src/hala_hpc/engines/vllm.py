"""vLLM in the worker's own process: no server, no port, no second copy of the text on its way."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hala_hpc.config import places
from hala_hpc.config.errors import HalaError
from hala_hpc.config.imports import heavy_imports
from hala_hpc.config.schema import EngineOptions, Recipe
from hala_hpc.engines.base import (
    Abilities,
    Completion,
    EngineDied,
    NoEngine,
    Request,
    TokenRequest,
)
from hala_hpc.engines.encoder import Encoder, Prompt

QUEUE_FACTOR = 2
"""Requests held per sequence that vLLM runs at once: as many wait as run, so it never runs dry (ours)."""
KILLER = """
import os, signal, sys
sys.stdin.read()
for word in sys.argv[1:]:
    pid, started = word.split(":")
    try:
        with open(f"/proc/{pid}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[19] == started:
                os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
"""
"""Waits for the end of its input, which comes when whoever holds the other end is gone, however it went."""

SHARED = ("temperature", "top_p", "top_k", "frequency_penalty", "repetition_penalty")
"""What requests and vLLM call by one name."""

ABILITIES = Abilities(package="vllm", loads_model=True, takes_tokens=True, weighs_choices=True, writes_users=True)


@dataclass
class Options(EngineOptions):
    """The recipe's ``engine:`` section for ``kind: vllm``. Null keys are left to vLLM."""

    kind: str = "vllm"
    tensor_parallel_size: int = 1  # GPUs that one worker's model is spread over, within a node
    pipeline_parallel_size: int = 1
    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    enable_prefix_caching: bool = True
    enforce_eager: bool = False
    trust_remote_code: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)  # any further argument of vllm.LLM


class Vllm:
    """See the module. Prompts are made and measured here, so that a bad one never reaches vLLM."""

    def __init__(self, recipe: Recipe) -> None:
        os.environ.setdefault("VLLM_CACHE_ROOT", str(_own_cache(recipe.site.scratch)))
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        with _signals_kept_from_children():
            with heavy_imports("sklearn"):  # transformers takes it in where it is there, for what vLLM does not use
                vllm = _imported()
                from vllm.v1.engine.exceptions import EngineDeadError

                make_engine = vllm.LLM  # vLLM imports most of itself when it is asked for a name

            self._died = EngineDeadError
            self._make_params = vllm.SamplingParams
            self._structured = vllm.sampling_params.StructuredOutputsParams
            self._final_only = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
            is_cpu = vllm.platforms.current_platform.is_cpu()
            self._llm = make_engine(**(_with_whole_prompts if is_cpu else dict)(arguments(recipe)))
        self._engine = self._llm.llm_engine
        self._guard = Guard(_processes(self._engine))
        self.tokenizer: Any = self._llm.get_tokenizer()
        self.version = version("vllm")
        config = self._engine.vllm_config
        self.context: int = config.model_config.max_model_len
        _check_room(self.context, recipe.sampling.max_tokens)
        self.capacity: int = QUEUE_FACTOR * config.scheduler_config.max_num_seqs
        self._encoder = Encoder(self.tokenizer, recipe.model.chat_template_kwargs)
        self._refused: list[Completion] = []
        self._prompts: dict[str, Prompt] = {}  # of requests in flight

    def add(self, id: str, request: Request) -> None:
        try:
            prompt = self._encoder.encode(request)
        except HalaError:
            raise
        except Exception as error:  # noqa: BLE001 (a chat template is a program that may raise whatever it likes)
            self._refused.append(Completion(id, error=f"bad prompt: {type(error).__name__}: {error}"))
            return
        tokens = prompt.ids
        room = self.context - len(tokens)
        wanted = 1 if request.choices or request.max_tokens is None else request.max_tokens
        if not tokens or room < wanted:
            problem = f"too long: {len(tokens)} prompt tokens and {wanted} to write, context {self.context}"
            self._refused.append(Completion(id, error=problem if tokens else "bad prompt: empty"))
            return
        try:
            self._add(id, tokens, self._params(request, room, list(prompt.choices)))
            self._prompts[id] = prompt
        except EngineDied:
            raise
        except Exception as error:  # noqa: BLE001 (vLLM has its own classes for what it does not like in a request)
            self._refused.append(Completion(id, error=f"bad request: {error}"))

    def poll(self, seconds: float) -> list[Completion]:
        done, self._refused = self._refused, []
        return done or [self._completion(output) for output in self.outputs(seconds)]

    def ask(self, request: TokenRequest) -> None:
        params = {"temperature": 0.0, "output_kind": self._final_only} | request.params
        self._add(request.id, request.tokens, self._make_params(**params))

    def abort(self, ids: list[str]) -> None:
        with contextlib.suppress(self._died):
            self._engine.abort_request(ids)

    def outputs(self, seconds: float) -> list[Any]:
        if not self._engine.has_unfinished_requests() or not self._has_output(seconds):
            return []
        with self._death_told():
            return [output for output in self._engine.step() if output.finished]

    def close(self) -> None:
        # The engine's own process would otherwise outlive an exception that holds a reference to it.
        with contextlib.suppress(Exception):
            self._engine.engine_core.shutdown()
        self._guard.close()
        with contextlib.suppress(Exception):  # what is left of an engine that died must not hide how
            import torch

            if torch.distributed.is_initialized():  # else the engine has done it, which takes a second
                from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()

    def _add(self, id: str, tokens: list[int], params: Any) -> None:
        with self._death_told():
            self._engine.add_request(id, {"prompt_token_ids": tokens}, params)

    @contextlib.contextmanager
    def _death_told(self) -> Iterator[None]:
        try:
            yield
        except self._died as error:
            raise EngineDied(str(error)) from error

    def _has_output(self, seconds: float) -> bool:
        """Wait for the engine's next output. Raises EngineDied.

        vLLM 0.32 waits for it without end, also when the process that should write it is dead.
        """
        core = self._engine.engine_core
        outputs = getattr(core, "outputs_queue", None)
        if outputs is None:  # the engine runs in this very process
            return True
        with outputs.not_empty:
            filled = outputs.not_empty.wait_for(lambda: outputs.queue, timeout=seconds)
        if not filled and core.resources.engine_dead:
            raise EngineDied("its process ended")
        return bool(filled)

    def _completion(self, output: Any) -> Completion:
        prompt, text = self._prompts.pop(output.request_id), output.outputs[0]
        chosen, weights, finish = text.text, (), text.finish_reason or ""
        if prompt.choices and text.logprobs:
            chosen, finish = prompt.choices[text.token_ids[0]], "stop"
            weights = tuple(text.logprobs[0][token].logprob for token in prompt.choices)
        elif self._encoder.marks:
            chosen = self._encoder.without_special(chosen)
        return Completion(
            output.request_id,
            chosen,
            finish,
            len(output.prompt_token_ids or ()),
            len(text.token_ids),
            error="aborted: by the engine" if text.finish_reason in ("abort", "error") else None,
            opened=prompt.opened,
            escaped=prompt.escaped,
            weights=weights,
        )

    def _params(self, request: Request, room: int, choices: Sequence[int] = ()) -> Any:
        held: dict[str, Any] = {}
        if choices:
            held = {"allowed_token_ids": choices, "logprob_token_ids": choices}
        elif request.schema:
            held = {"structured_outputs": self._structured(json=request.schema)}
        return self._make_params(
            **{name: getattr(request, name) for name in SHARED},
            **held,
            max_tokens=1 if choices else request.max_tokens or room,
            stop=list(request.stop),
            seed=request.seed if request.temperature > 0 else None,
            skip_special_tokens=not self._encoder.marks,
            output_kind=self._final_only,
        )


def check(recipe: Recipe) -> None:
    """Refuse a folder that is not a model, and a number of GPUs that a worker does not get. Raises HalaError."""
    name = recipe.model.name
    if not name:
        raise HalaError("model.name: which model?", "a folder or a name on the hub, for example model.name=ORG/MODEL")
    if name.startswith("/") and not (Path(name) / "config.json").is_file():
        raise places.no_model(name, "model.name: ")
    if recipe.engine.max_model_len is not None:
        _check_room(recipe.engine.max_model_len, recipe.sampling.max_tokens)
    gpus = recipe.site.slurm.gpus_per_worker
    wanted = recipe.engine.tensor_parallel_size * recipe.engine.pipeline_parallel_size
    if recipe.site.executor == "slurm" and gpus and wanted != gpus:
        raise HalaError(
            f"engine: tensor_parallel_size x pipeline_parallel_size is {wanted}, but a worker gets {gpus} GPUs",
            f"set site.slurm.gpus_per_worker={wanted} or engine.tensor_parallel_size={gpus}",
        )


start = Vllm
"""Loads the model, which takes minutes for a large one."""


def arguments(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says, as arguments of ``vllm.LLM``."""
    model, options = recipe.model, asdict(recipe.engine)
    more: dict[str, Any] = options.pop("arguments")
    del options["kind"]
    given = {"model": model.name, "revision": model.revision, "tokenizer": model.tokenizer, "seed": 0} | options
    return {key: value for key, value in given.items() if value is not None} | more


def _with_whole_prompts(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same without chunked prefill, where every prompt has room in one step.

    On a CPU, vLLM 0.32 dies of a request with a seed whose prompt it cuts in two ("CPU Generator does not use offset").
    """
    context, batch = arguments.get("max_model_len"), arguments.get("max_num_batched_tokens")
    has_room = batch is None or (context is not None and batch >= context)
    return ({"enable_chunked_prefill": False} if has_room else {}) | arguments


def _imported() -> Any:
    """The module vllm. Raises NoEngine where this Python does not have it."""
    try:
        import vllm
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise NoEngine(
            f"no vLLM in this Python ({sys.executable})",
            "`hala env build serve-cuda` (serve-cpu without GPUs), and a site whose environments.serve.venv is that; "
            "for example --site local-cpu",
        ) from error
    return vllm


def _check_room(context: int, max_tokens: int | None) -> None:
    """Raises HalaError where no prompt fits, so that every text would go to quarantine."""
    if max_tokens is not None and max_tokens >= context:
        raise HalaError(
            f"sampling.max_tokens: {max_tokens} tokens to write leave no room for a prompt in a context of {context}",
            "a smaller sampling.max_tokens, or a larger engine.max_model_len if the model has it",
        )


class Guard:
    """A small process that kills the given ones once this process is gone; ``close`` calls it off.

    Not even kill -9 may leave an engine behind: an orphan would keep its GPU.
    """

    def __init__(self, processes: Sequence[int]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if processes:
            words = [f"{pid}:{_started(pid)}" for pid in processes]
            # A session of its own: the signals that end us are not meant for it.
            command = [sys.executable, "-S", "-c", KILLER, *words]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def close(self) -> None:
        """Nothing is to be killed any more."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # which waits for it, and closes our end
            self._process = None


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks: a process id alone may have gone to somebody else."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _processes(engine: Any) -> list[int]:
    """The processes that vLLM started for the engine; those of a tensor-parallel engine end with them."""
    manager = getattr(getattr(engine.engine_core, "resources", None), "engine_manager", None)
    return [int(process.pid) for process in getattr(manager, "processes", ())]


def _own_cache(scratch: str | None) -> Path:
    """A compile cache that no other worker of this node uses now, and that the next one finds warm.

    Engines that start at once on one node race in a shared cache. The lock lives as long as this process. They share
    only what vLLM learns of an architecture in a process of its own, which takes a core 20 s: files that are renamed.
    """
    root = Path(scratch or tempfile.gettempdir()) / f"hala-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(1024):
        lock = os.open(root / f"vllm-{number}.lock", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        cache, shared = root / f"vllm-{number}", root / "modelinfos"
        cache.mkdir(exist_ok=True)
        shared.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (cache / shared.name).symlink_to(shared)
        return cache
    raise HalaError(f"{root}: all 1024 compile caches are in use", "set VLLM_CACHE_ROOT")


@contextlib.contextmanager
def _signals_kept_from_children() -> Iterator[None]:
    """Block the stop signals while vLLM starts its processes: they inherit it.

    Slurm sends its signal to every process of a step, and the default action of SIGUSR2 would end the engine while the
    worker still wants to finish its rows. A signal that came meanwhile is delivered at the end.
    """
    blocked = {signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
