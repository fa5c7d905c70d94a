"""What the extension ships: every listed file exists, every needed one is listed, none asks for more than Slicer has.

Needs no Slicer.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "SlicerMedSIGHT"

# What Slicer 5.10 brings beside Python itself, and what of it may be imported before it is needed.
BUNDLED = {"slicer", "vtk", "qt", "ctk", "numpy", "scipy", "requests", "urllib3", "pydicom", "SimpleITK", "PIL"}
AT_FILE_SCOPE_IN_MODULE = {"slicer", "vtk", "qt", "ctk", "numpy", "SimpleITK", "medsight_core", "MedSIGHTLib"}
# Used where they are installed, done without where they are not.
OPTIONAL = {"blosc2", "highdicom", "nibabel", "qtpy", "openjpeg", "pylibjpeg"}
# Files that are themselves imported where they are needed only, if at all.
LATE = ("dicom_seg.py", "dispatch.py", "nifti.py")
# Slicer's own sample data: names and SHA256 as Slicer's module SampleData has them.
SAMPLE_DIGEST = {
    "CTLiver": "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e",
    "CTChest": "4507b664690840abb6cb9af2d919377ffc4ef75b167cb6fd0f747befdb12e38e",
    "MRBrainTumor1": "998cb522173839c78657f4bc0ea907cea09fd04e44601f17c82ea27927937b95",
}
METADATA = ("HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS")


def variable(name: str, file: Path) -> list[str]:
    """A list of a CMake file, with its variables replaced."""
    text = re.sub(r"#[^\n]*", "", file.read_text(encoding="utf-8"))
    found = re.search(rf"set\({name}\s([^)]*)\)", text)
    assert found, f"{file.name} sets no {name}"
    return found[1].replace("${MODULE_NAME}", "MedSIGHT").split()


def listed() -> set[Path]:
    """Python files that the extension ships."""
    cmake = MODULE / "CMakeLists.txt"
    return {MODULE / one for one in variable("MODULE_PYTHON_SCRIPTS", cmake)} | {
        REPOSITORY / one for one in variable("CORE_PYTHON_SCRIPTS", cmake)
    }


def module_file(name: str) -> Path | None:
    """The file of a module of ours."""
    root = REPOSITORY if name.split(".")[0] == "medsight_core" else MODULE
    path = root.joinpath(*name.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((one for one in candidates if one.is_file()), None)


def imports(file: Path, *, at_file_scope: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, those in functions too unless told otherwise; none that only checkers see."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    root = REPOSITORY if REPOSITORY / "medsight_core" in file.parents else MODULE
    package = list(file.relative_to(root).with_suffix("").parts)[:-1]
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        or (at_file_scope and isinstance(node, ast.FunctionDef | ast.Lambda))
        for statement in (node.body if isinstance(node.body, list) else [node.body])
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def needed() -> set[Path]:
    """Files that are reached from what is shipped of the module, packages on the way included."""
    waiting = [file for file in listed() if MODULE in file.parents]
    found = set(waiting)
    while waiting:
        for name in imports(waiting.pop()):
            if name.split(".")[0] not in ("medsight_core", "MedSIGHTLib"):
                continue
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                file = module_file(".".join(parts[:end]))
                if file is not None and file not in found:
                    found.add(file)
                    waiting.append(file)
    return found


def shown(files: set[Path]) -> list[str]:
    return sorted(str(file.relative_to(REPOSITORY)) for file in files)


def test_every_listed_file_exists_and_every_needed_one_is_listed() -> None:
    assert shown({file for file in listed() if not file.is_file()}) == []
    assert shown(needed() - listed()) == [], "needed, but not listed in SlicerMedSIGHT/CMakeLists.txt"
    assert shown(listed() - needed()) == [], "listed, but needed by nothing"
    assert shown(set(MODULE.glob("MedSIGHTLib/**/*.py")) - listed()) == [], "not listed, so it would not be shipped"


def test_every_resource_is_listed() -> None:
    resources = {MODULE / one for one in variable("MODULE_PYTHON_RESOURCES", MODULE / "CMakeLists.txt")}
    assert shown({file for file in resources if not file.is_file()}) == []
    present = {file for file in (MODULE / "Resources").rglob("*") if file.is_file() and "Screenshots" not in file.parts}
    assert shown(present - resources) == []


def test_the_torch_half_is_not_shipped() -> None:
    halves = {"model", "inference", "server", "batch", "cli", "checkpoints", "output"}
    core = [file.relative_to(REPOSITORY / "medsight_core").parts[0] for file in listed() if MODULE not in file.parents]
    assert not halves & set(core)


@pytest.mark.parametrize("file", sorted(needed()), ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_nothing_is_imported_that_slicer_does_not_have(file: Path) -> None:
    own = {"medsight_core", "MedSIGHTLib", "SampleData"}
    for name in imports(file):
        root = name.split(".")[0]
        assert root in sys.stdlib_module_names | BUNDLED | OPTIONAL | own, f"{name} is not in Slicer"
    in_module = MODULE in file.parents
    for name in imports(file, at_file_scope=True):
        root = name.split(".")[0]
        allowed = AT_FILE_SCOPE_IN_MODULE if in_module else BUNDLED | {"medsight_core"}
        lazy = OPTIONAL if file.name in LATE else set()
        assert root in sys.stdlib_module_names | allowed | lazy, f"{name} at file scope"


def test_the_extension_says_all_that_the_index_asks_for() -> None:
    text = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
    active = re.sub(r"^\s*#[^\n]*", "", text, flags=re.MULTILINE)
    assert "project(MedSIGHT)" in active
    for name in METADATA:
        found = re.search(rf'set\(EXTENSION_{name} "([^"]+)"\)', active)
        assert found and found[1].strip(), name
    for line in (
        "find_package(Slicer REQUIRED)",
        "include(${Slicer_USE_FILE})",
        "add_subdirectory(SlicerMedSIGHT)",
        "include(${Slicer_EXTENSION_GENERATE_CONFIG})",
        "include(${Slicer_EXTENSION_CPACK})",
    ):
        assert line in active, line
    assert "## NEXT_MODULE" in text


def test_the_icon_and_the_screenshots_that_are_named_exist() -> None:
    text = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
    named = re.findall(r"/main/(\S+?\.png)", text)
    assert len(named) >= 2
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []


CONFIG = """
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/Nothing.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/Nothing.cmake)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR lib/qt-scripted-modules)
set(BUILD_TESTING ON)
set(Slicer_FOUND TRUE)
"""
# Does what Slicer's macros do with the files they are given: checks that they exist, and copies them to their place.
USE = """
function(copy_all source destination)
  foreach(file ${ARGN})
    if(NOT EXISTS ${source}/${file})
      message(FATAL_ERROR "nonexistent file '${file}'")
    endif()
    get_filename_component(folder ${file} DIRECTORY)
    file(COPY ${source}/${file} DESTINATION ${destination}/${folder})
  endforeach()
endfunction()
macro(ctkMacroCompilePythonScript)
  cmake_parse_arguments(MY "NO_INSTALL_SUBDIR;GLOBAL_TARGET"
    "TARGET_NAME;SOURCE_DIR;DESTINATION_DIR;INSTALL_DIR" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_UNPARSED_ARGUMENTS OR NOT MY_TARGET_NAME OR NOT MY_INSTALL_DIR)
    message(FATAL_ERROR "ctkMacroCompilePythonScript: ${MY_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT MY_SOURCE_DIR)
    set(MY_SOURCE_DIR ${CMAKE_CURRENT_SOURCE_DIR})
  endif()
  copy_all(${MY_SOURCE_DIR} ${MY_DESTINATION_DIR} ${MY_SCRIPTS} ${MY_RESOURCES})
endmacro()
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MY_SLICER "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MY_SLICER_UNPARSED_ARGUMENTS OR NOT MY_SLICER_NAME)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: ${MY_SLICER_UNPARSED_ARGUMENTS}")
  endif()
  copy_all(${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}
    ${MY_SLICER_SCRIPTS} ${MY_SLICER_RESOURCES})
endmacro()
function(slicer_add_python_unittest)
  cmake_parse_arguments(MY "" "SCRIPT" "" ${ARGN})
  if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${MY_SCRIPT})
    message(FATAL_ERROR "no test ${MY_SCRIPT}")
  endif()
endfunction()
"""

WITHOUT = ("torch", "transformers", "nibabel", "typer", "rich", "blosc2", "highdicom", "pylibjpeg", "openjpeg")
PROGRAM = """
import importlib, sys
for name in sys.argv[2].split(","): sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
for name in sys.argv[3:]: importlib.import_module(name)
import medsight_core
assert medsight_core.__file__.startswith(sys.argv[1]), medsight_core.__file__
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension as CMake lays it out, with stand-ins for Slicer's macros."""
    if shutil.which("cmake") is None or not (shutil.which("make") or shutil.which("ninja")):
        pytest.skip("CMake is not installed")
    folder = tmp_path_factory.mktemp("build")
    config = folder / "slicer"
    config.mkdir()
    (config / "SlicerConfig.cmake").write_text(CONFIG)
    (config / "UseSlicer.cmake").write_text(USE)
    (config / "Nothing.cmake").write_text("")
    # No compiler is needed for Python files: project(MedSIGHT) would look for one.
    source = folder / "source"
    source.mkdir()
    text = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
    (source / "CMakeLists.txt").write_text(text.replace("project(MedSIGHT)", "project(MedSIGHT NONE)"))
    for name in ("SlicerMedSIGHT", "medsight_core"):
        (source / name).symlink_to(REPOSITORY / name)
    run = subprocess.run(
        ["cmake", "-S", source, "-B", folder / "out", f"-DSlicer_DIR={config}"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return folder / "out" / "lib" / "qt-scripted-modules"


def test_cmake_accepts_the_extension_and_lays_it_out(built: Path) -> None:
    laid = {file.relative_to(built) for file in built.rglob("*.py")}
    wanted = {file.relative_to(MODULE if MODULE in file.parents else REPOSITORY) for file in listed()}
    assert laid == wanted


def test_what_is_laid_out_imports_without_what_slicer_lacks(built: Path) -> None:
    """In a fresh interpreter, outside the source tree; modules that need Slicer are left out where there is none."""
    files = sorted((built / "medsight_core").rglob("*.py"))
    names = [".".join(file.relative_to(built).with_suffix("").parts) for file in files]
    names = [name.removesuffix(".__init__") for name in names]
    names = [name for name in names if f"{name.split('.')[-1]}.py" not in LATE]
    try:
        import slicer  # noqa: F401
    except ImportError:
        names = [name for name in names if ".mrml" not in name]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(built), ",".join(WITHOUT), *names],
        capture_output=True,
        text=True,
        cwd=built,
        env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert run.returncode == 0, run.stderr
