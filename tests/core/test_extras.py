"""What is said where a package is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medsight_core.cli.extras import needs_extra
from medsight_core.errors import MedSightError

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from medsight_core.cli import app
app(sys.argv[2:], prog_name="medsight")
"""


def test_it_names_the_package_and_the_extra() -> None:
    with pytest.raises(MedSightError) as caught, needs_extra("server"):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401
    assert "no_such_package" in caught.value.sentence and "medsight[server]" in caught.value.remedy
    with pytest.raises(ModuleNotFoundError), needs_extra("server"):
        import medsight_core.no_such_module  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize(
    ("package", "command", "extra"),
    [
        ("torch", ["convert", "release", "out"], "model"),
        ("fastapi", ["serve"], "server"),
        ("yaml", ["train", "1"], "train"),
    ],
)
def test_commands_without_their_packages_end_in_a_sentence(
    package: str, command: list[str], extra: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, package, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert package in done.stderr and f"medsight[{extra}]" in done.stderr
