"""Prints by how much our model differs from the released one in every recorded run.

    python -m tests.parity.figures
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__).parent), "-q", "--no-header", "-p", "no:cacheprovider"]))
