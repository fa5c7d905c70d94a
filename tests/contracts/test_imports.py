"""The walls of the house: who may import whom, what needs no torch, and what the code never does.

The table below is the architecture page in one place. A new module of `medsight_core` gets a row of its own or belongs
to the values; a new row is a decision, and it is made here.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = ("medsight_core", "training", "SlicerMedSIGHT", "benchmarks")

# part of medsight_core -> the other parts that it may import, at any depth of its code. "values" are the single modules
# and everything else without a row.
MAY_IMPORT: dict[str, set[str]] = {
    "values": set(),
    "models": {"values"},
    "imaging": {"values"},
    "output": {"values", "imaging"},
    "wire": {"values", "imaging"},
    "client": {"values", "imaging", "wire"},
    "chat": {"values", "wire"},
    "mrml": {"values", "imaging", "chat"},
    "model": {"values", "imaging"},
    "inference": {"values", "imaging", "model", "models"},
    "server": {"values", "imaging", "wire", "model", "inference", "cli"},
    "batch": {"values", "imaging", "output", "client", "inference", "cli"},
    "convert": {"values", "output", "model", "inference", "cli"},
    "cli": {"values", "imaging", "output", "client", "chat", "models", "model", "inference"},
}
TORCH_HALF = {"model", "inference", "server", "convert"}
TRAINING_MAY_IMPORT = {"values", "imaging", "output", "cli", "model", "inference", "convert"}

# What the torch-free half uses where it happens to be installed, and does without where it is not.
OPTIONAL = {"blosc2", "ray", "huggingface_hub", "filelock"}

# Distribution -> import name, where they differ.
IMPORT_NAMES = {"pillow": "PIL", "pylibjpeg-openjpeg": "openjpeg", "simpleitk": "SimpleITK"}


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(REPOSITORY)}:{self.line} imports {self.module}"


def python_files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (REPOSITORY / folder).rglob("*.py"))


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> Iterator[Import]:
    """Every import of a file, wherever it stands, except those that only type checkers see."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    package = module_name(file).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import name` may name a module of the package, so the name counts.
            yield from (Import(file, node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def part_of(module: str) -> str:
    """The part of medsight_core that a dotted name belongs to."""
    names = module.split(".")
    return names[1] if len(names) > 1 and names[1] in MAY_IMPORT else "values"


@pytest.mark.parametrize("file", python_files("medsight_core"), ids=module_name)
def test_core_imports_point_down_only(file: Path) -> None:
    part = part_of(module_name(file))
    allowed = MAY_IMPORT[part] | {part}
    for found in imports_of(file):
        root = found.module.split(".")[0]
        assert root not in {"training", "SlicerMedSIGHT", "tests", "benchmarks"}, f"{found}: nothing imports that"
        if root == "medsight_core":
            assert part_of(found.module) in allowed, f"{found}, but {part} may import {sorted(allowed)} only"


@pytest.mark.parametrize("file", python_files("training"), ids=module_name)
def test_training_imports_the_model_and_the_torch_free_half(file: Path) -> None:
    for found in imports_of(file):
        root = found.module.split(".")[0]
        assert root not in {"SlicerMedSIGHT", "tests", "benchmarks"}, str(found)
        if root == "medsight_core":
            assert part_of(found.module) in TRAINING_MAY_IMPORT, str(found)


def test_the_base_install_suffices_for_the_torch_free_half() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=!~\[; ]", requirement)[0].lower() for requirement in project["dependencies"]}
    provided = {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names} | set(sys.stdlib_module_names)
    # What Slicer itself brings to the modules that run inside it.
    slicer = {"slicer", "vtk", "qt", "ctk", "mrml"}
    checked = 0
    for file in python_files("medsight_core"):
        part = part_of(module_name(file))
        if part in TORCH_HALF:
            continue
        for found in imports_of(file):
            root = found.module.split(".")[0]
            if root == "medsight_core" or (part == "mrml" and root in slicer):
                continue
            checked += 1
            assert root in provided | OPTIONAL, f"{found}, which is no dependency of the base install"
    assert checked > 0


def test_the_torch_free_half_imports_without_torch() -> None:
    """In a fresh interpreter where torch and transformers cannot be imported at all."""
    modules = [
        module_name(file)
        for file in python_files("medsight_core")
        if part_of(module_name(file)) not in TORCH_HALF | {"mrml"} and file.name != "__main__.py"
    ]
    assert {"medsight_core.regions", "medsight_core.geometry"} <= set(modules)
    program = (
        "import importlib, sys\n"
        "for name in ('torch', 'transformers', 'safetensors'): sys.modules[name] = None\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *modules, "training.cli"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
FORBIDDEN_OPTIONS = {"allow_pickle", "trust_remote_code"}


def forbidden_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What runs code that came as data: (line, what)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.split(".")[0] in FORBIDDEN_MODULES:
                    yield node.lineno, f"import {name}"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS:
                yield node.lineno, called
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in FORBIDDEN_OPTIONS and not off:
                    yield node.lineno, keyword.arg


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(p)",
        "yaml.load(f)",
        "eval(x)",
        "np.load(p, allow_pickle=True)",
    ],
)
def test_the_search_finds_what_is_forbidden(code: str) -> None:
    assert list(forbidden_calls(ast.parse(code)))


def test_the_search_leaves_the_harmless_alone() -> None:
    assert not list(forbidden_calls(ast.parse("model.eval()\nyaml.safe_load(f)\nnp.load(p, allow_pickle=False)")))


def test_weights_and_configurations_are_data_never_code() -> None:
    found = [
        f"{file.relative_to(REPOSITORY)}:{line} {what}"
        for file in python_files(*CODE)
        for line, what in forbidden_calls(ast.parse(file.read_text(encoding="utf-8"), str(file)))
    ]
    assert not found


def machine_paths() -> re.Pattern[str]:
    """Folders that exist on one machine only; written in halves so that this file passes its own test."""
    roots = "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me/[a-z]", "Us" + "ers/[A-Za-z]", "fa" + "rm", "tm" + "p"))
    return re.compile(rf"(?<![\w.}}/:-])/({roots})[/\w]")


def test_the_search_for_machine_paths_finds_one_and_leaves_words_alone() -> None:
    assert machine_paths().search('open("/' + 'home/someone/scan.dcm")')
    assert machine_paths().search("see /" + "tmp/out")
    assert not machine_paths().search("https://example.org/" + "home/a, ../" + "tmp/a, net" + "work/a")


def test_no_file_knows_a_path_of_one_machine() -> None:
    pattern = machine_paths()
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".cff", ".json", ".html", ".j2"}
    places = [REPOSITORY / name for name in (*CODE, "tests", "docs", ".ci")]
    files = [REPOSITORY / "Makefile", REPOSITORY / ".ci" / "run"]
    files += [file for place in places for file in place.rglob("*") if file.suffix in suffixes]
    files += [file for file in REPOSITORY.iterdir() if file.suffix in suffixes]
    assert len(files) > 10
    found = []
    for file in files:
        if not file.is_file() or file.stat().st_size > 1_000_000:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{file.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)
