"""The ``hala`` command. Nothing large but click is imported until a command is known, so that help comes at once."""

import errno
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from hala_hpc import __version__
from hala_hpc.config.errors import HalaError, did_you_mean

COMMANDS = {
    "plan": ("plan", "Show what a recipe would run; submits nothing."),
    "submit": ("plan", "Plan a run and start its workers."),
    "status": ("status", "Show how far a run is."),
    "why": ("pipeline", "Say what made a stage of a pipeline stale."),
    "cost": ("cost", "Show what a run cost, and how much of it came to be output."),
    "resume": ("workers", "Start workers for what is missing."),
    "steward": ("steward", "Decide what a run needs: wait, more workers, or stop and say why."),
    "chaos": ("chaos", "Hurt a run's own workers on purpose, and show what that cost."),
    "verify": ("results", "Prove that every row is accounted for, once."),
    "collect": ("results", "Write the finished dataset as Parquet."),
    "publish": ("publish", "Put the finished model or dataset on the hub, with its card."),
    "best": ("results", "Pick a merge weight or checkpoint from evaluations, by a stated rule."),
    "report": ("results", "Write tables, plots and a page of one or several runs."),
    "score": ("score", "Score translations against references: BLEU, chrF++, ROUGE-L, structure."),
    "sample": ("mending", "Show some rows of a run, side by side with their sources."),
    "explain": ("mending", "Show how one row came to be: each request, and what became of it."),
    "redo": ("mending", "Do some rows of a finished run again, as a new version of it."),
    "logs": ("workers", "Show what the workers of a run, or of one shard, printed."),
    "cancel": ("workers", "End the workers of a run; finished rows are kept."),
    "runs": ("status", "List the runs."),
    "init": ("init", "Describe this cluster: write its site profile, and try it."),
    "sites": ("site", "List the site profiles."),
    "env": ("site", "Build the environments that stages run in."),
    "doctor": ("site", "Show what is missing on this machine or site."),
    "prefetch": ("site", "Download a recipe's model and dataset, for nodes without internet."),
    "worker": ("workers", "Work on a run, here and now (what a Slurm job calls)."),
}
"""The module of this room that has each command, as ``NAME_command``, and what it does."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
LONG = 2_000
"""Characters of an error that are shown; its middle is left out where a word of the command line is a whole text."""


class LazyGroup(click.Group):
    """Knows its commands by name and one line; imports a command's module only to run it or to show its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"hala_hpc.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        for known in (command, *(command.commands.values() if isinstance(command, click.Group) else ())):
            known.help = _verbatim(known.help)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        name = args[0]
        if name not in COMMANDS:
            raise HalaError(f"no command '{name}'", did_you_mean(name, COMMANDS))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", prog_name="hala")
def hala() -> None:
    r"""Make language models speak a new language, on a Slurm cluster.

    \b
    hala plan   jobs/demo/translate.yaml --site local-cpu
    hala submit jobs/hala/translate-openorca.yaml --site hpc/sites/mycluster.yaml run.workers=64
    hala status translate-openorca --watch
    """


def _verbatim(text: str | None) -> str:
    """Examples in a raw docstring keep their lines: click knows them by a real backspace before them."""
    return (text or "").replace("\\b\n", "\b\n")


hala.help = _verbatim(hala.help)


def main() -> None:
    """Entry point. Exit code 2 and one line for anything that the person can mend; a traceback is a bug of ours."""
    try:
        # click keeps Exit to itself here, and returns its code; a command's own result is None.
        sys.exit(hala(_words(sys.argv[1:]), prog_name="hala", standalone_mode=False) or 0)
    except click.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:  # `hala env`
        click.echo(error.format_message())
        sys.exit(0)
    except click.NoSuchOption as error:
        _fail(f"{error.format_message()}{_key_hint(error)}")
    except click.ClickException as error:
        _fail(error.format_message())
    except HalaError as error:
        _fail(str(error))
    except BrokenPipeError:  # `hala … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except OSError as error:
        if error.errno is None:  # of a library's own making, not the disk's
            raise
        _fail(_refused(error))


def _words(words: list[str]) -> list[str]:
    """``hala`` alone shows help, ``hala help X`` is ``hala X --help``. Raises HalaError for a word that is not text."""
    for word in words:
        if any("\udc80" <= letter <= "\udcff" for letter in word):  # bytes, which Python keeps as halves of characters
            shown = word.encode("utf-8", "backslashreplace").decode()
            raise HalaError(f"'{shown}': not UTF-8, and all that is written down is", "give the file another name")
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    return words or ["--help"]


def _key_hint(error: click.NoSuchOption) -> str:
    """``--workers 3``, where no option but a recipe's key is called so."""
    import dataclasses

    from hala_hpc.config import schema

    name = error.option_name.lstrip("-").replace("-", "_")
    sections = {"run": schema.Run, "data": schema.Data, "sampling": schema.Sampling, "site.slurm": schema.Slurm}
    for section, kind in sections.items():
        if name in {field.name for field in dataclasses.fields(kind)}:
            return f" (of a recipe it is a key: {section}.{name}=…)"
    return ""


def _refused(error: OSError) -> str:
    """What a disk refused, in a line: a full one, a file where a folder is wanted, a name too long, no permission."""
    from hala_hpc.run.files import meant_by

    paths = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    where = " -> ".join(str(path.with_name(meant_by(path.name)) if path.name else path) for path in paths)
    if error.errno in FULL_DISK:
        at = f" ({where})" if where else ""
        return f"no space left on the disk{at}; nothing was left half-made (free some, then try again)"
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    return f"{where}: {reason}" if where else reason


def _fail(message: str) -> None:
    line = " ".join(message.split())
    if len(line) > LONG:
        line = f"{line[: LONG // 2]} … {line[-LONG // 2 :]}"
    click.echo(f"hala: error: {line}", err=True)
    sys.exit(2)
