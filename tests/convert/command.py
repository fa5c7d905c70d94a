"""Says the command as a person would."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

from medsight_core.cli.group import CommandGroup
from medsight_core.convert.cli import app as ours


def command() -> typer.Typer:
    """`medsight` with this one command, whatever is installed beside it."""
    app = typer.Typer(cls=CommandGroup, pretty_exceptions_enable=False)
    app.registered_commands += ours.registered_commands
    app.callback()(lambda: None)
    return app


def convert(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Runs ``medsight convert``; gives what it said on stdout and stderr."""
    result = CliRunner().invoke(command(), ["convert", *map(str, arguments)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout, result.stderr


def refused(*arguments: object, out: Path) -> str:
    """What it said when it refused, which left nothing behind."""
    before = sorted(out.parent.iterdir())
    stdout, stderr = convert(*arguments, out, code=2)
    assert stdout == ""
    assert "error: " in stderr
    assert sorted(out.parent.iterdir()) == before
    return stderr
