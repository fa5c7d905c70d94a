"""``python -m medsight_core.cli`` is `medsight`."""

from medsight_core.cli import app

if __name__ == "__main__":
    app(prog_name="medsight")
