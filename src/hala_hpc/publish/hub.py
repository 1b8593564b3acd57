"""Publishing to the Hugging Face hub: file by file, again where it failed, and seen only when all is there.

Large files go first and are part of nothing; the commit that names them all comes last. So a publication that broke off
shows nobody a half of it, and the next attempt sends only what the hub has not: it knows files by their contents, and
nothing need be remembered here. The key comes from ``hf auth login`` or HF_TOKEN; it is no option, and never written.
"""

import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from hala_hpc.config.errors import HalaError, first_line
from hala_hpc.config.words import plural
from hala_hpc.publish.cards import MEND
from hala_hpc.publish.content import CARD, Entry
from hala_hpc.publish.sources import FindCard

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi


ATTEMPTS: Final = 8
"""Of one step, besides the client's own five: with the pauses below, an outage of a quarter of an hour."""
LONGEST_PAUSE: Final = 300.0
STATUS_THAT_PASSES: Final = frozenset({408, 409, 412, 425, 429})
"""Besides all from 500 on: time-outs, other commits at the same time, too many requests."""
STATUS_IN_WORDS: Final = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to try. ``pause`` is the first, in seconds; each is twice the one before, and a little by chance."""

    attempts: int = ATTEMPTS
    pause: float = 5.0

    def seconds(self, attempt: int) -> float:
        return float(min(LONGEST_PAUSE, self.pause * 2**attempt) * random.uniform(0.75, 1.25))


def persist(what: str, act: Callable[[], T], say: Callable[[str], None], patience: Patience) -> T:
    """Do it, again and again where what failed may pass. Raises HalaError at last, or for what will not pass."""
    for attempt in range(patience.attempts):
        try:
            return act()
        except Exception as error:
            if not _passes(error) or attempt == patience.attempts - 1:
                raise HalaError(f"{what}: {_first_line(error)}", _hint(error)) from error
            pause = patience.seconds(attempt)
            say(f"{what}: {_first_line(error)}; again in {pause:.0f} s")
            time.sleep(pause)
    raise AssertionError("no attempts")


def _passes(error: BaseException) -> bool:
    """Whether another attempt may do better: broken connections and busy servers, but not a refusal or a lost file."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in STATUS_THAT_PASSES
    for each in _causes(error):
        if isinstance(each, (ValueError, TypeError, FileNotFoundError, PermissionError)):
            return False
    return isinstance(error, (OSError, RuntimeError)) or type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpcore",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from: the client wraps what a file's upload raised."""
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    """What the server said, if that is why: Xet's part of the client tells it in words alone."""
    for each in _causes(error):
        if isinstance(status := getattr(getattr(each, "response", None), "status_code", None), int):
            return status
        if said := STATUS_IN_WORDS.search(str(each)):
            return int(said[1])
    return None


def _hint(error: BaseException) -> str:
    if _status(error) in (401, 403):
        return "may this key write there? `hf auth whoami`"
    return "the same command goes on where it stopped"


def _first_line(error: BaseException) -> str:
    """Of what it came from: the client wraps that."""
    *_, cause = (each for each in _causes(error) if str(each).strip() or each is error)
    return first_line(cause)


PREFIX: Final = "hub:"
NAME: Final = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
TOGETHER: Final = 20
"""Files sent at a time; what an interruption costs is at most the unfinished ones of them."""
IN_A_COMMIT: Final = 100
"""Files in one commit: the hub's documentation advises 50 to 100, for larger ones run out of time."""
READ_TOGETHER: Final = {
    "model": re.compile(r"[^/]+\.safetensors(\.index\.json)?|[^/]+\.bin(\.index\.json)?"),
    "dataset": re.compile(r"data/.+\.(parquet|jsonl?|csv)(\.gz)?"),
}
"""Files that whoever loads the repository reads with ours, so others than ours have to go."""


@dataclass(frozen=True)
class Uploaded:
    """What the hub has now. ``removed``: weights or rows of an earlier publication that are no more."""

    url: str
    commit: str
    files: int
    bytes: int
    removed: tuple[str, ...]


def name_of(target: str) -> str:
    """ORG/NAME of ``hub:ORG/NAME``. Raises HalaError where it is none."""
    name = target.removeprefix(PREFIX)
    if not NAME.fullmatch(name) or ".." in name or "--" in name:
        raise HalaError(f"--to {target}: no name on the hub", "hub:ORG/NAME, of letters, digits, -, _ and .")
    return name


def upload(
    entries: Sequence[Entry],
    name: str,
    kind: Literal["model", "dataset"],
    said: str,
    say: Callable[[str], None],
    private: bool = False,
    replace: bool = False,
    api: "HfApi | None" = None,
    patience: Patience | None = None,
) -> Uploaded:
    """Make the repository ``name``, or bring it up to date, with exactly these weights or rows.

    Parameters
    ----------
    said : the commit's message.
    say : told of progress, a line at a time.
    private : of a repository that is new; one that is public already is refused.
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
    old = hub.others(READ_TOGETHER[kind], ordered)
    if old and not replace:
        told = f"{plural(len(old), 'file')} there would be read together with ours, e.g. {old[0]}"
        raise HalaError(f"{name}: {told}", "--replace removes them")
    adds = hub.send(ordered)
    commit = hub.commit(adds, old, said)
    prefix = "datasets/" if kind == "dataset" else ""
    size = sum(entry.size for entry in ordered)
    return Uploaded(f"{hub.api.endpoint}/{prefix}{name}", commit, len(ordered), size, tuple(old))


@dataclass(frozen=True)
class _Hub:
    """A repository, and how patiently it is spoken to. ``about``: its name and kind, as the client wants them."""

    api: "HfApi"
    about: dict[str, Any]
    say: Callable[[str], None]
    patience: Patience

    def check(self, card: str) -> None:
        """Have the hub look at the card first: the client does so with the commit that names it, when all was sent."""
        from huggingface_hub import get_session, get_token

        def validate() -> Any:
            about = {"repoType": self.about["repo_type"], "content": card}
            headers = {"authorization": f"Bearer {self.api.token or get_token()}"}
            answer = get_session().post(f"{self.api.endpoint}/api/validate-yaml", json=about, headers=headers)
            answer.raise_for_status()
            return answer.json()

        if errors := self.again("checking its card", validate).get("errors"):
            raise HalaError(f"the hub refuses the card: {'; '.join(str(one.get('message')) for one in errors)}", MEND)

    def make(self, private: bool) -> None:
        self.again(
            "making the repository",
            lambda: self.api.create_repo(**self.about, private=private or None, exist_ok=True),
        )
        if private and not self.again("looking at it", lambda: self.api.repo_info(**self.about)).private:
            name = self.about["repo_id"]
            raise HalaError(f"{name} is on the hub, and public", "leave out --private, or give another name")

    def others(self, read_together: re.Pattern[str], entries: Sequence[Entry]) -> list[str]:
        """What would be read together with ``entries``, and is none of them."""
        there = set(self.again("looking at its files", lambda: self.api.list_repo_files(**self.about)))
        return sorted(file for file in there - {entry.name for entry in entries} if read_together.fullmatch(file))

    def send(self, entries: Sequence[Entry]) -> "list[CommitOperationAdd]":
        """Send what is large, some at a time. Returns what a commit has to name."""
        from huggingface_hub import CommitOperationAdd

        total, sent, adds = sum(entry.size for entry in entries), 0, []
        for some in _parts(entries, TOGETHER):
            made = [CommitOperationAdd(entry.name, str(entry.file or "") or entry.text.encode()) for entry in some]
            send = partial(self.api.preupload_lfs_files, **self.about, additions=made, free_memory=False)
            self.again(f"sending {some[0].name}", send)
            adds += made
            sent += sum(entry.size for entry in some)
            self.say(f"{sent / 1e9:,.2f} of {total / 1e9:,.2f} GB there")
        return adds

    def commit(self, adds: "Sequence[CommitOperationAdd]", old: Sequence[str], said: str) -> str:
        """Name everything, the card last. Returns the commit's id, of several the last one's."""
        from huggingface_hub import CommitOperationDelete

        done = ""
        operations = [*adds[:-1], *(CommitOperationDelete(file) for file in old), *adds[-1:]]
        for some in _parts(operations, IN_A_COMMIT):
            commit = partial(self.api.create_commit, **self.about, operations=some, commit_message=said)
            done = str(self.again("committing", commit).oid)
        return done

    def again(self, what: str, act: Callable[[], T]) -> T:
        return persist(what, act, self.say, self.patience)


def quiet_unless_watched() -> None:
    """The client's progress bars are for a terminal: elsewhere they are a page of noise a file."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()


def cards(cache: Path | None, online: bool) -> FindCard:
    """Cards of models and datasets, out of the hub's ``cache`` (None: the user's own), else from the hub itself."""

    def find(name: str, kind: str, revision: str | None) -> Path | None:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        about: dict[str, Any] = {"repo_type": kind, "revision": revision, "cache_dir": cache}
        try:
            found = try_to_load_from_cache(name, CARD, **about)
            if isinstance(found, str):
                return Path(found)
            return Path(hf_hub_download(name, CARD, **about)) if online else None
        except (OSError, ValueError, HFValidationError):  # no such card, or no hub: then its licence is not known
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


def _parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    return (items[at : at + most] for at in range(0, len(items), most))
