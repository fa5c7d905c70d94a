"""How the command behaves as a whole: errors become one line and an exit code, other packages bring commands.

Exit codes: 0 done, 1 a defect of ours, 2 something about the input, the model or the usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_group

from medsight_core.errors import MedSightError

PLUGINS: Final = "medsight.commands"
DEBUG: Final = "MEDSIGHT_DEBUG"


class CommandGroup(TyperGroup):
    """The top level of `medsight`.

    Packages that declare an entry point of the group ``medsight.commands`` add commands: its value is a `typer.Typer`,
    whose commands appear at the top level, or a function that takes one and adds to it. They are imported only for
    ``--help`` and for a command that is not ours, so that ours start fast.
    """

    _plugins_loaded = False
    _plugin_failure: MedSightError | None = None

    def list_commands(self, ctx: Any) -> list[str]:
        self._load_plugins()
        if self._plugin_failure is not None:
            say(f"note: {self._plugin_failure}")
        return list(super().list_commands(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            self._load_plugins()
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and self._plugin_failure is not None:
            raise self._plugin_failure  # rather than "no such command", which would be half the truth
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MedSightError as error:
            caught: BaseException = error
            code, sentence = 2, f"error: {error}"
        except KeyboardInterrupt as error:
            caught = error
            code, sentence = 130, "Stopped; nothing was written."
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if hasattr(error, "show") and hasattr(error, "exit_code"):
                raise  # the usage errors of typer, which print themselves
            caught, code = error, 1
            text = " ".join(str(error).split())
            sentence = (
                f"error: Something unexpected went wrong ({type(error).__name__}{': ' if text else ''}{text}). "
                f"Please report it with the output of the same command under {DEBUG}=1."
            )
        if os.environ.get(DEBUG, "") not in ("", "0"):
            traceback.print_exception(caught)
        say(sentence)
        ctx.exit(code)

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        extra = typer.Typer()
        for entry in sorted(entry_points(group=PLUGINS), key=lambda entry: entry.name):
            try:
                _add(entry, extra)
            except Exception as error:  # somebody else's package must not take our commands down
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self._plugin_failure = MedSightError(
                    "plugin_failed",
                    f"The commands of {entry.value.split(':')[0]} could not be loaded ({reason}).",
                    "Install what they need, for training: pip install 'medsight[train]'.",
                )
        for name, command in get_group(extra).commands.items():
            self.commands.setdefault(name, command)


def _add(entry: EntryPoint, extra: typer.Typer) -> None:
    loaded = entry.load()
    if isinstance(loaded, typer.Typer):
        # Not add_typer: an application with one command needs a callback to stand by itself, which has no place here.
        extra.registered_commands += loaded.registered_commands
        extra.registered_groups += loaded.registered_groups
    else:
        loaded(extra)


def say(sentence: str) -> None:
    """One line for the person at the terminal, on stderr."""
    line = printable(" ".join(sentence.split()))
    head, mark, rest = line.partition(": ")
    if mark and head in ("error", "note", "warning") and sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        colour = "red" if head == "error" else "yellow"
        line = typer.style(f"{head}:", fg=colour, bold=True) + f" {rest}"
    # Not typer.echo, which would write past an animation that has the terminal, and into its line.
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def printable(text: str) -> str:
    """Text by strangers without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)
