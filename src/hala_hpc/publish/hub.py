"""Publishing to the Hugging Face hub: file by file, again where it failed, and seen only when all is there.

Large files go first and are part of nothing; the commit that names them all comes last. So a publication that broke off
shows nobody a half of it, and the next attempt sends only what the hub has not: it knows files by their contents, and
nothing need be remembered here. The key comes from ``hf auth login`` or HF_TOKEN; it is no option, and never written.

``HfApi.upload_folder`` (huggingface_hub 1.33) does less: with Xet, the store of the hub, it commits 250 files at a time
while it sends, deletions first and the card anywhere; without Xet each attempt hashes all files anew and shows no
progress.
"""

import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypedDict, TypeVar

from hala_hpc.config.errors import HalaError, first_line, plural
from hala_hpc.publish.cards import MEND
from hala_hpc.publish.content import Entry
from hala_hpc.publish.sources import FindCard
from hala_hpc.run.digests import CARD

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

PREFIX: Final = "hub:"
NAME: Final = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
TOGETHER: Final = 20
"""Files sent at a time; what an interruption costs is at most the unfinished ones of them."""
IN_A_COMMIT: Final = 100
"""Files in one commit: the hub's documentation advises 50 to 100, for larger ones run out of time."""
READ_TOGETHER: Final = {
    "model": re.compile(r"[^/]+\.(safetensors|bin)(\.index\.json)?"),
    "dataset": re.compile(r"data/.+\.(parquet|jsonl?|csv)(\.gz)?"),
}
"""Files that whoever loads the repository reads with ours, so others than ours have to go."""
LONGEST_PAUSE: Final = 300.0
STATUS_THAT_PASSES: Final = frozenset({408, 409, 412, 425, 429})
"""May pass, as all from 500 on may: time-outs, other commits at the same time, too many requests."""
STATUS_IN_WORDS: Final = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")
"""How Xet's part of the client gives the server's status."""

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How often to try one step, besides the client's own five attempts, and the first pause in seconds.

    Each pause is twice the one before, and a little by chance. The defaults outlast an outage of a quarter of an hour.
    """

    attempts: int = 8
    pause: float = 5.0

    def seconds(self, attempt: int) -> float:
        return float(min(LONGEST_PAUSE, self.pause * 2**attempt) * random.uniform(0.75, 1.25))


@dataclass(frozen=True)
class Uploaded:
    """What the hub has now. ``removed``: weights or rows of an earlier publication that were removed."""

    url: str
    commit: str
    files: int
    bytes: int
    removed: tuple[str, ...]


def name_of(target: str) -> str:
    """ORG/NAME of ``hub:ORG/NAME``. Raises HalaError for another form."""
    name = target.removeprefix(PREFIX)
    if not NAME.fullmatch(name) or ".." in name or "--" in name:
        raise HalaError(f"--to {target}: not a name on the hub", "hub:ORG/NAME, of letters, digits, -, _ and .")
    return name


def upload(
    entries: Sequence[Entry],
    name: str,
    kind: Literal["model", "dataset"],
    message: str,
    say: Callable[[str], None],
    private: bool = False,
    replace: bool = False,
    api: "HfApi | None" = None,
    patience: Patience | None = None,
) -> Uploaded:
    """Make the repository ``name``, or bring it up to date, with exactly these weights or rows.

    Parameters
    ----------
    message : of the commit.
    say : gets the progress, a line at a time.
    private : make a new repository a private one; one that is public already is refused.
    replace : remove weights or rows of an earlier publication that are not among ours; else they are refused.

    Raises
    ------
    HalaError : the hub refuses, or cannot be reached in ``patience``. What was sent is not sent again the next time.
    """
    from huggingface_hub import HfApi

    hub = _Hub(api or HfApi(), {"repo_id": name, "repo_type": kind}, say, patience or Patience())
    refuse_without_key(hub.api)
    hub.make(private)
    hub.check(next(entry.text for entry in entries if entry.name == CARD))
    ordered = sorted(entries, key=lambda entry: (entry.name == CARD, entry.name))
    there = hub.again("looking at its files", partial(hub.api.list_repo_files, **hub.repository))
    others = set(there) - {entry.name for entry in ordered}
    old = sorted(filter(READ_TOGETHER[kind].fullmatch, others))
    if old and not replace:
        reason = f"{plural(len(old), 'file')} there would be read together with ours, e.g. {old[0]}"
        raise HalaError(f"{name}: {reason}", "--replace removes them")
    commit = hub.commit(hub.send(ordered), old, message)
    prefix = "datasets/" if kind == "dataset" else ""
    size = sum(entry.size for entry in ordered)
    return Uploaded(f"{hub.api.endpoint}/{prefix}{name}", commit, len(ordered), size, tuple(old))


class _Repository(TypedDict):
    """As the client's functions name it."""

    repo_id: str
    repo_type: str


@dataclass(frozen=True)
class _Hub:
    """A repository, and how patiently to ask the hub for it."""

    api: "HfApi"
    repository: _Repository
    say: Callable[[str], None]
    patience: Patience

    def again(self, what: str, act: Callable[[], T]) -> T:
        """Do it, again and again where what failed may pass. Raises HalaError at last, or for what will not pass."""
        for attempt in range(self.patience.attempts):
            try:
                return act()
            except Exception as error:
                status, innermost = _status(error), reversed([*_causes(error)])
                cause = next((cause for cause in innermost if str(cause).strip()), error)
                problem = f"{what}: {first_line(cause)}"
                if not _passes(error, status) or attempt == self.patience.attempts - 1:
                    refused = "may this key write there? `hf auth whoami`"
                    hint = refused if status in (401, 403) else "the same command goes on where it stopped"
                    raise HalaError(problem, hint) from error
                pause = self.patience.seconds(attempt)
                self.say(f"{problem}; again in {pause:.0f} s")
                time.sleep(pause)
        raise AssertionError("no attempts")

    def make(self, private: bool) -> None:
        create = partial(self.api.create_repo, **self.repository, private=private or None, exist_ok=True)
        self.again("making the repository", create)
        if private and not self.again("looking at it", partial(self.api.repo_info, **self.repository)).private:
            name = self.repository["repo_id"]
            raise HalaError(f"{name} is on the hub, and public", "leave out --private, or give another name")

    def check(self, card: str) -> None:
        """Have the hub look at the card first: the client does so with the commit that names it, when all was sent."""
        from huggingface_hub import get_session, get_token

        def validate() -> list[str]:
            body = {"repoType": self.repository["repo_type"], "content": card}
            headers = {"authorization": f"Bearer {self.api.token or get_token()}"}
            answer = get_session().post(f"{self.api.endpoint}/api/validate-yaml", json=body, headers=headers)
            answer.raise_for_status()
            return [str(error.get("message")) for error in answer.json().get("errors", ())]

        if errors := self.again("checking its card", validate):
            raise HalaError(f"the hub refuses the card: {'; '.join(errors)}", MEND)

    def send(self, entries: Sequence[Entry]) -> "list[CommitOperationAdd]":
        """Send what is large, some at a time. Returns what a commit has to name."""
        from huggingface_hub import CommitOperationAdd

        total, sent, additions = sum(entry.size for entry in entries), 0, []
        for part in _parts(entries, TOGETHER):
            new = [CommitOperationAdd(entry.name, str(entry.file or "") or entry.text.encode()) for entry in part]
            send = partial(self.api.preupload_lfs_files, **self.repository, additions=new, free_memory=False)
            self.again(f"sending {part[0].name}", send)
            additions += new
            sent += sum(entry.size for entry in part)
            self.say(f"{sent / 1e9:,.2f} of {total / 1e9:,.2f} GB there")
        return additions

    def commit(self, additions: "Sequence[CommitOperationAdd]", old: Sequence[str], message: str) -> str:
        """Name everything, the card last. Returns the commit's id, of several the last one's."""
        from huggingface_hub import CommitOperationDelete

        commit = ""
        operations = [*additions[:-1], *map(CommitOperationDelete, old), *additions[-1:]]
        for part in _parts(operations, IN_A_COMMIT):
            act = partial(self.api.create_commit, **self.repository, operations=part, commit_message=message)
            commit = str(self.again("committing", act).oid)
        return commit


def _passes(error: BaseException, status: int | None) -> bool:
    """Whether another attempt may do better: broken connections and busy servers, but not a refusal or a lost file."""
    if status is not None:
        return status >= 500 or status in STATUS_THAT_PASSES
    if any(isinstance(cause, ValueError | TypeError | FileNotFoundError | PermissionError) for cause in _causes(error)):
        return False
    return isinstance(error, OSError | RuntimeError) or type(error).__module__.startswith(("httpx", "httpcore"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from: the client wraps what a file's upload raised."""
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    """The status that the server gave, if that is why."""
    for cause in _causes(error):
        if isinstance(status := getattr(getattr(cause, "response", None), "status_code", None), int):
            return status
        if words := STATUS_IN_WORDS.search(str(cause)):
            return int(words[1])
    return None


def _parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    return (items[at : at + most] for at in range(0, len(items), most))


def quiet_unless_watched() -> None:
    """The client's progress bars are for a terminal: elsewhere they are a page of noise a file."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def cards(cache: Path | None, online: bool) -> FindCard:
    """Cards of models and datasets, out of the hub's ``cache`` (None: the user's own), else from the hub itself."""

    def find(name: str, kind: str, revision: str | None) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError

        get = partial(hf_hub_download, name, CARD, repo_type=kind, revision=revision, cache_dir=cache)
        for only_here in (True, False) if online else (True,):
            try:
                return Path(get(local_files_only=only_here))
            except (OSError, ValueError, HFValidationError):  # no such card, or no hub: then its licence is not known
                continue
        return None

    return find


def refuse_without_key(api: "HfApi | None" = None) -> None:
    """Raises HalaError where nothing could be sent, before anything takes its time."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise HalaError("HF_HUB_OFFLINE is set, so the hub cannot be reached", "publish where there is internet")
    if not (get_token() if api is None else api.token or get_token()):
        raise HalaError(
            "no key for the hub", "`hf auth login`, or HF_TOKEN in the environment; never in a file of ours"
        )
