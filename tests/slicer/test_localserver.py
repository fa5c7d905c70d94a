"""The model on this computer: real servers as child processes, from start to every kind of end; and installing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medsight_core.errors import MedSightError
from medsight_core.events import Done
from medsight_core.regions import Question
from tests.chat.scripted import scan
from tests.slicer.backing import stored, until
from tests.slicer.binding import library
from tests.slicer.heart import beating

pytest.importorskip("qtpy", reason="the settings need Qt")

REPOSITORY = Path(__file__).resolve().parents[2]
SERVER = os.environ.get("MEDSIGHT_SERVER_PYTHON", "")

needs_server = pytest.mark.skipif(not SERVER, reason="MEDSIGHT_SERVER_PYTHON names no Python that has medsight[server]")


def there(pid: int) -> bool:
    """Whether a process is there, be it a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def parent(lib: Any) -> Iterator[Any]:
    from PySide6 import QtWidgets

    made = QtWidgets.QWidget()
    yield made
    made.deleteLater()
    lib.settle()


def serving(lib: Any, parent: Any, folder: Path) -> Any:
    """A real server that is not started yet."""
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "MEDSIGHT_SERVER_STORE": str(folder / "volumes"),
    }
    return lib.localserver.LocalServer(parent, stored(lib, folder), python=SERVER, environment=environment)


@pytest.fixture
def local(lib: Any, parent: Any, tmp_path: Path) -> Iterator[Any]:
    """On both bindings."""
    made = serving(lib, parent, tmp_path)
    yield made
    made.close()


@pytest.fixture
def once() -> Iterator[Any]:
    """The package on one binding, for what takes long."""
    yield from library("plain")


@pytest.fixture
def local_once(once: Any, tmp_path: Path) -> Iterator[Any]:
    """On one binding."""
    from PySide6 import QtWidgets

    parent = QtWidgets.QWidget()
    made = serving(once, parent, tmp_path)
    yield made
    made.close()


def connection_to(lib: Any, local: Any) -> Any:
    consents = lib.consent.Consents(local._store, lambda: local.origin)
    return lib.connection.Connection(local._store, consents, local)


@needs_server
def test_it_starts_answers_and_stops(lib: Any, local: Any) -> None:
    states: list[str] = []
    local.on_change(lambda: states[-1:] == [local.state] or states.append(local.state))
    connection = connection_to(lib, local)
    assert local.state == "stopped" and local.origin == ""
    local.start()
    local.start()
    until(lib, lambda: local.state != "starting")
    assert local.state == "running", local.log
    assert local.sentence == "Running: medsight-mini on cpu."
    assert local.url.startswith("http://127.0.0.1:") and len(local.token) > 30
    backend = connection.connect()
    assert backend.info().model == "medsight-mini"
    volume = scan()
    assert isinstance(list(backend.ask(Question(text="What is shown?", volume=volume, slice_index=2)))[-1], Done)
    until(lib, lambda: any("/v1/chat/completions" in line for line in local.log))
    with pytest.raises(MedSightError) as caught:
        lib.connection.RemoteBackend(local.url).info()
    assert caught.value.code == "unauthorized", "nobody else is let in"
    assert not any(local.token in line for line in local.log)
    pid = local.pid
    assert there(pid)
    local.stop()
    assert local.origin == ""
    until(lib, lambda: local.state == "stopped")
    assert not there(pid) and local.pid == 0 and states == ["starting", "running", "stopping", "stopped"]
    with pytest.raises(MedSightError, match="is not running"):
        connection.address  # noqa: B018


@needs_server
def test_killed_while_running_it_says_so_and_starts_again(once: Any, local_once: Any) -> None:
    lib, local = once, local_once
    local.start()
    until(lib, lambda: local.state == "running")
    first, token = local.pid, local.token
    os.kill(first, signal.SIGKILL)
    until(lib, lambda: local.state == "failed")
    assert local.sentence.startswith("The local backend ended by itself. It was ended from outside")
    assert local.origin == "" and not there(first)
    local.restart()
    until(lib, lambda: local.state == "running")
    second = local.pid
    assert second != first and local.token != token
    local.restart()
    until(lib, lambda: local.state == "starting" and local.pid not in (0, second))
    assert not there(second)
    third = local.pid
    began = time.monotonic()
    local.close()
    assert not there(third) and time.monotonic() - began < 5, "gone when the viewer goes"


@needs_server
def test_closed_or_stopped_while_it_starts(once: Any, local_once: Any) -> None:
    lib, local = once, local_once
    local.start()
    until(lib, lambda: local.pid)
    first = local.pid
    local.stop()
    until(lib, lambda: local.state == "stopped")
    assert not there(first)
    local.start()
    until(lib, lambda: local.pid)
    second = local.pid
    local.close()
    assert not there(second)
    local.start()
    assert local.pid == 0, "closed is closed"


@needs_server
def test_a_port_that_is_taken_is_said(once: Any, local_once: Any) -> None:
    lib, local = once, local_once

    def play() -> None:
        local.start(port)
        until(lib, lambda: local.state == "failed")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        beating(lib, play)
    assert str(port) in local.sentence and local.sentence.startswith("The local backend did not start."), local.log
    assert "See the log" in local.sentence and local.sentence.count("..") == 0


@needs_server
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_it_ends_when_the_viewer_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "viewer.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from PySide6 import QtCore, QtWidgets
            app = QtWidgets.QApplication([])
            from MedSIGHTLib.localserver import LocalServer
            from MedSIGHTLib.settings import Store
            file = QtCore.QSettings(sys.argv[1] + "/s.ini", QtCore.QSettings.IniFormat)
            window = QtWidgets.QWidget()
            more = {"PYTHONPATH": sys.argv[3], "OMP_NUM_THREADS": "1", "MEDSIGHT_SERVER_STORE": sys.argv[1] + "/v"}
            local = LocalServer(window, Store(file), python=sys.argv[2], environment=more)
            local.on_change(lambda: print(local.state, local.pid, flush=True))
            local.start()
            app.exec()
            """
        )
    )
    viewer = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), SERVER, str(REPOSITORY)],
        env={
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'SlicerMedSIGHT'}",
            "QT_QPA_PLATFORM": "offscreen",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert viewer.stdout is not None
    try:
        pid = next(int(line.split()[1]) for line in viewer.stdout if line.startswith("running"))
        viewer.kill()
    finally:
        viewer.kill()
        viewer.wait(30)
        viewer.stdout.close()
    end = time.monotonic() + 60
    while there(pid) and not zombie(pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not there(pid) or zombie(pid), "in a container nobody may take the dead away"


def zombie(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def made(lib: Any, parent: Any, folder: Path, python: str, **environment: str) -> Any:
    return lib.localserver.LocalServer(parent, stored(lib, folder), python=python, environment=environment)


def test_a_python_that_is_none(lib: Any, parent: Any, tmp_path: Path) -> None:
    local = made(lib, parent, tmp_path, "/nowhere/python")
    local.start()
    until(lib, lambda: local.state == "failed")
    assert local.sentence == "The local backend did not start. Its Python cannot be started. See the log."
    local.start()
    assert local.state == "starting", "it can be tried again"
    until(lib, lambda: local.state == "failed")
    local.close()


def test_a_python_without_medsight(lib: Any, parent: Any, tmp_path: Path) -> None:
    (tmp_path / "medsight_core").mkdir()
    (tmp_path / "medsight_core" / "__init__.py").write_text("raise ImportError('not here')\n")
    local = made(lib, parent, tmp_path, sys.executable, PYTHONPATH=str(tmp_path))
    local.start()
    until(lib, lambda: local.state == "failed")
    assert local.sentence == "The local backend did not start. ImportError: not here. See the log."
    local.close()


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def app(arguments, prog_name):
    print("MedSIGHT 9 serves fake (abc, cpu) at http://127.0.0.1:1, here.")
    print("The token is", os.environ["MEDSIGHT_TOKEN"])
    print("half a line: \\u00e9\\u4e2d", end="")
    while True:
        time.sleep(0.1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_one_that_does_not_want_to_end_is_ended(
    lib: Any, parent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "medsight_core" / "server"
    folder.mkdir(parents=True)
    (folder / "cli.py").write_text(STUBBORN)
    monkeypatch.setattr(lib.process, "PATIENCE_MS", 300)
    monkeypatch.setattr(lib.process, "LAST_MS", 300)
    local = made(lib, parent, tmp_path, sys.executable, PYTHONPATH=str(tmp_path))
    for end in (local.stop, local.close):
        local.start()
        until(lib, lambda: local.state == "running")
        until(lib, lambda: "The token is …" in local.log)
        assert local.token not in "".join(local.log)
        pid = local.pid
        end()
        until(lib, lambda pid=pid: not there(pid), 10)
    assert "half a line: é中" in local.log


def test_one_that_never_says_where_it_is_is_given_up(
    lib: Any, parent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "medsight_core" / "server"
    folder.mkdir(parents=True)
    (folder / "cli.py").write_text("import time\ndef app(arguments, prog_name): time.sleep(60)\n")
    monkeypatch.setattr(lib.localserver, "START_SECONDS", 1)
    local = made(lib, parent, tmp_path, sys.executable, PYTHONPATH=str(tmp_path))
    local.start()
    until(lib, lambda: local.state == "failed" and local.pid == 0)
    assert "said nothing for 1 s" in local.sentence
    local.close()


def test_the_childs_environment_is_not_the_viewers(lib: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONHOME", "PYTHONPATH", "MEDSIGHT_TOKEN", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "/somewhere")
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    outside, inside = lib.process.outside(), lib.process.inside()
    assert not {"PYTHONHOME", "PYTHONPATH", "MEDSIGHT_TOKEN", "VIRTUAL_ENV"} & outside.keys()
    assert "PYTHONHOME" in inside and not {"PYTHONPATH", "MEDSIGHT_TOKEN"} & inside.keys()
    assert outside["https_proxy"] == "http://proxy.example" and outside["PATH"]


# Installing.

GOOD = '{"version": [3, 12], "bits": 64, "venv": true, "medsight": "0.1.0", "protocol": 1, "lacks": []}'


def probe(**said: Any) -> tuple[str, ...]:
    import json

    return ("a warning of site", "MEDSIGHT " + json.dumps(json.loads(GOOD) | said))


def played(lib: Any, script: Any, answers: dict[str, Any]) -> tuple[list[Any], str | MedSightError]:
    """Runs the steps without a process: what each of them is told is looked up by a part of its title or command."""
    steps: list[Any] = []
    ran = None
    try:
        while True:
            step = next(script) if ran is None else script.send(ran)
            steps.append(step)
            said = next(
                (found for part, found in answers.items() if part in f"{step.title} {' '.join(step.command)}"), ()
            )
            code = said if isinstance(said, int) else 0
            ran = lib.installing.Ran(code=code, lines=said if isinstance(said, tuple) else ("",))
            if isinstance(said, list):
                ran = lib.installing.Ran(code=1, lines=tuple(said))
    except StopIteration as end:
        return steps, end.value
    except MedSightError as error:
        return steps, error


def settings_for(lib: Any, folder: Path, **more: Any) -> Any:
    return lib.settings.Settings(folder=str(folder), **more)


def titles(steps: list[Any]) -> list[str]:
    return [step.title for step in steps]


def test_installing_finds_makes_fills_and_looks(lib: Any, tmp_path: Path) -> None:
    folder = tmp_path / "backend"
    folder.mkdir()
    settings = settings_for(lib, folder, package="/a/checkout[server]")
    script = lib.installing.steps(settings, lambda: ["/old/python", "/good/python", "/other/python"])
    answers = {
        "/old/python": probe(version=[3, 9], medsight="", protocol=0),
        "Looking for Python /good/python": probe(medsight="", protocol=0),
        "Looking whether": probe(),
    }
    steps, end = played(lib, script, answers)
    assert end == "MedSIGHT 0.1.0 is installed."
    assert titles(steps) == [
        "Looking for Python", "Looking for Python", "Making an environment", "Preparing pip", "Installing PyTorch",
        "Installing MedSIGHT", "Looking whether it works",
    ]  # fmt: skip
    assert steps[2].command == ["/good/python", "-m", "venv", str(folder)]
    python = str(lib.environment.python_in(folder))
    assert all(step.command[0] == python for step in steps[3:])
    assert steps[4].command[-2:] == ["--index-url", "https://download.pytorch.org/whl/cpu"] or sys.platform == "darwin"
    assert steps[5].command[-1] == "/a/checkout[server]"
    assert not lib.environment.is_installed(folder), "there is no Python in it"


def test_what_is_there_is_found(lib: Any, tmp_path: Path) -> None:
    python = lib.environment.python_in(tmp_path)
    python.parent.mkdir(parents=True)
    python.write_text("")
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\n")
    steps, end = played(lib, lib.installing.steps(settings_for(lib, tmp_path), list), {"Looking at": probe()})
    assert end == "MedSIGHT 0.1.0 is installed." and len(steps) == 1
    assert lib.environment.is_installed(tmp_path)
    answers = {"Looking at": probe(protocol=0), "Looking whether": probe()}
    steps, end = played(lib, lib.installing.steps(settings_for(lib, tmp_path, gpu=True), list), answers)
    assert titles(steps)[1:4] == ["Preparing pip", "Installing PyTorch", "Installing MedSIGHT"], "brought up to date"
    assert "--index-url" not in steps[2].command
    assert lib.environment.made_by_the_viewer(tmp_path, "/usr") and not lib.environment.made_by_the_viewer(
        tmp_path, "/opt"
    )


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"/a/python": probe(version=[3, 9])}, "of 3.11 or newer that can make environments; there is 3.9."),
        ({"/a/python": probe(venv=False)}, "there is 3.12 without venv"),
        ({"/a/python": ("nonsense", "MEDSIGHT {")}, "of 3.11 or newer that can make environments."),
        ({"-m venv": ["Error: ensurepip is not available."], "/a/": probe()}, "could not be made. That Python"),
        ({"Installing PyTorch": ["ERROR: ProxyError(...)"], "/a/": probe()}, "Installing PyTorch failed. The proxy"),
        ({"Installing PyTorch": ["OSError: No space left on device"], "/a/": probe()}, "The disk is full."),
        ({"Installing MedSIGHT": ["x", "ERROR: No matching distribution found for a"], "/a/": probe()}, "No matching"),
        ({"Looking whether": probe(lacks=["torch"]), "/a/": probe()}, "It lacks torch."),
        ({"Looking whether": probe(protocol=9), "/a/": probe()}, "they do not understand each other"),
        ({"Looking whether": (), "/a/": probe()}, "does not start"),
    ],
)  # fmt: skip
def test_what_keeps_it_from_being_installed_has_a_name(
    lib: Any, tmp_path: Path, answers: dict[str, Any], words: str
) -> None:
    _, end = played(lib, lib.installing.steps(settings_for(lib, tmp_path / "b"), lambda: ["/a/python"]), answers)
    assert isinstance(end, MedSightError) and words in str(end), end
    assert end.remedy


def test_a_folder_that_cannot_be_used_is_refused_before_anything(
    lib: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.doc").write_text("")
    steps, end = played(lib, lib.installing.steps(settings_for(lib, tmp_path), list), {})
    assert steps == [] and "holds other things" in str(end)
    monkeypatch.setattr(lib.environment, "free_gb", lambda folder: 1.0)
    steps, end = played(lib, lib.installing.steps(settings_for(lib, tmp_path / "new"), list), {})
    assert steps == [] and "takes 1.8 GB, and there are 1.0 GB free" in str(end)


def scripted(lib: Any, *commands: str) -> Any:
    """Steps that are small programs of Python."""

    def script(settings: Any) -> Any:
        for number, text in enumerate(commands):
            ran = yield lib.installing.Step(title=f"Step {number}", command=[sys.executable, "-c", text])
            if ran.code:
                raise MedSightError("install_failed", f"Step {number} failed: {ran.lines[-1]}.", "See the log.")
        return "It is done."

    return script


def test_installing_shows_lines_and_progress(lib: Any, parent: Any, tmp_path: Path) -> None:
    lines = "print('Collecting torch')\nfor n in (0, 50, 100): print('Progress', n, 'of 100')"
    script = scripted(lib, lines, "print('Installed \\u00e9'); import os; print('PYTHONHOME' in os.environ)")
    local = lib.localserver.LocalServer(parent, stored(lib, tmp_path), script=script)
    local._store.save(lib.settings.Settings(folder=str(tmp_path / "b")))
    local.look()
    seen: list[tuple[str, str, float | None]] = []
    local.on_change(lambda: seen.append((local.state, local.sentence, local.fraction)))
    assert local.state == "missing"
    local.install()
    until(lib, lambda: local.state != "installing")
    assert ("installing", "Step 0", 0.5) in seen and ("installing", "Step 1", None) in seen
    assert local.log == ("Collecting torch", "Installed é", "False") and local.written == 3
    assert ("stopped", "It is done. Ready to start.", None) in seen
    local.close()


def test_installing_can_be_stopped_fail_and_be_closed(lib: Any, parent: Any, tmp_path: Path) -> None:
    store = stored(lib, tmp_path)
    store.save(lib.settings.Settings(folder=str(tmp_path / "b")))
    slow = scripted(lib, "import time; time.sleep(60)", "print('never')")
    local = lib.localserver.LocalServer(parent, store, script=slow)
    local.install()
    local.install()
    lib.settle(100)
    local.stop()
    until(lib, lambda: local.state == "missing", 10)
    assert local.sentence.startswith("The installation was stopped") and local.log == ()
    local.install()
    lib.settle(100)
    local.close()
    assert local._installer._process is None or not local._installer._process.running
    local = lib.localserver.LocalServer(parent, store, script=scripted(lib, "print('bad'); raise SystemExit(3)"))
    local.install()
    until(lib, lambda: local.state == "failed")
    assert local.sentence == "Step 0 failed: bad. See the log."
    local.close()


def text_of(lib: Any, widget: Any) -> str:
    return str(lib._qt.val(widget.text))


def test_the_box_shows_each_state_and_its_one_button(lib: Any, parent: Any, tmp_path: Path) -> None:
    store = stored(lib, tmp_path)
    store.save(lib.settings.Settings(folder=str(tmp_path / "b")))
    local = lib.localserver.LocalServer(parent, store, script=scripted(lib, "import time; time.sleep(60)"))
    box = lib.localbox.LocalBox(store, local, choose=lambda parent, title, folder: str(tmp_path / "elsewhere"))
    box.widget.show()
    assert text_of(lib, box.button) == "Install and start" and box.size.isVisible()
    assert "0.5 GB to download and 1.8 GB on the disk" in text_of(lib, box.size)
    box.gpu.setChecked(True)
    assert store.settings.gpu and "3.5 GB to download" in text_of(lib, box.size)
    box._browse.click()
    assert store.settings.folder == str(tmp_path / "elsewhere") == text_of(lib, box.folder)
    box.button.click()
    until(lib, lambda: text_of(lib, box.button) == "Stop installing")
    assert box.bar.isVisible() and not box.folder.isEnabled()
    local._write("Collecting <b>torch</b>")
    until(lib, lambda: "Collecting <b>torch</b>" in box.log.toPlainText())
    assert not box.log.isVisible()
    box.more.click()
    assert box.log.isVisible()
    box.button.click()
    until(lib, lambda: text_of(lib, box.button) == "Install and start")
    local.close()
    lib._qt.dispose(box.widget)
    lib.settle()
