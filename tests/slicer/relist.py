"""Writes the lists of files that the extension ships into its CMakeLists.txt: ``python -m tests.slicer.relist``.

``test_packaging`` says when it is time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tests.slicer.test_packaging import MODULE, REPOSITORY, needed

CMAKE = MODULE / "CMakeLists.txt"


def put(name: str, files: Iterable[str]) -> None:
    """Replaces a list."""
    text = CMAKE.read_text(encoding="utf-8")
    lines = "".join(f"  {file}\n" for file in files)
    CMAKE.write_text(re.sub(rf"set\({name}\s[^)]*\)", f"set({name}\n{lines})", text), encoding="utf-8")


def main() -> None:
    """What lies in the module's folder, then what that needs of the core."""
    own = sorted(MODULE.glob("MedSIGHTLib/*.py")) + sorted(MODULE.glob("Testing/Python/*.py"))
    names = (str(file.relative_to(MODULE)).replace("MedSIGHTLib/", "${MODULE_NAME}Lib/") for file in own)
    put("MODULE_PYTHON_SCRIPTS", ["${MODULE_NAME}.py", *names])
    put(
        "CORE_PYTHON_SCRIPTS",
        sorted(str(file.relative_to(REPOSITORY)) for file in needed() if MODULE not in file.parents),
    )


if __name__ == "__main__":
    main()
