"""`medsight serve` as a process: how it starts, what it refuses, how it ends, and what is left when it is killed."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from medsight_core.server.cli import app
from medsight_core.wire.codecs import usable_codecs
from medsight_core.wire.volumes import chunks_of, digest_of
from tests.inference.tiny import stack
from tests.server.running import PATIENCE, asking

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-more-than-sixteen-characters"


@dataclass
class Process:
    """A server that was started."""

    process: subprocess.Popen[str]
    greeting: str
    session: requests.Session

    @property
    def url(self) -> str:
        """Where it says that it is."""
        found = re.search(r" at (https?://\S+), ", self.greeting)
        assert found, self.greeting
        return found[1]

    def chat(self, *, stream: bool = False) -> requests.Response:
        """Asks it."""
        return self.session.post(
            f"{self.url}/v1/chat/completions",
            json={"messages": asking(), "stream": stream},
            stream=stream,
            timeout=PATIENCE,
        )

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str, str]:
        """Waits for its end: exit code, what else it printed, its log."""
        out, log = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, log


@contextmanager
def started(*arguments: str, token: str = "") -> Iterator[Process]:
    """Starts a server with a slow model and waits for its greeting."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.slow_serve", "serve", "--port", "0", *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MEDSIGHT_TOKEN": token},
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        lines: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "Ctrl+C" in line:
                break
        else:
            raise AssertionError(process.communicate()[1])
        session = requests.Session()
        session.trust_env = False
        if token:
            session.headers["Authorization"] = f"Bearer {token}"
        yield Process(process=process, greeting="".join(lines), session=session)
    finally:
        process.kill()
        process.communicate()


def refused(*arguments: str) -> str:
    """What a server says that does not start."""
    run = CliRunner().invoke(app, ["serve", *arguments])
    assert run.exit_code == 2, run.output
    (line,) = run.output.strip().splitlines()
    assert line.startswith("error: ")
    assert TOKEN not in line
    return line


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MedSIGHT test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "server.pem", tmp_path / "server.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def test_a_port_in_use_is_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused("--port", str(port), "--store", str(tmp_path), "--model", str(tmp_path / "none"))
    assert f"port {port}" in said
    assert "--port 0" in said


def test_a_damaged_checkpoint_does_not_start_and_its_file_is_named(checkpoint: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = refused("--port", "0", "--store", str(tmp_path / "store"), "--model", str(damaged))
    assert "model.safetensors" in said
    assert not list((tmp_path / "store").iterdir())


def test_a_missing_checkpoint_does_not_start(tmp_path: Path) -> None:
    said = refused("--port", "0", "--store", str(tmp_path), "--model", str(tmp_path / "none"))
    assert str(tmp_path / "none") in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "token"),
        (["--host", "0.0.0.0", "--token", TOKEN], "--cert"),
        (["--cert", "missing.pem", "--key", "missing.key"], "missing.pem"),
        (["--host", "192.0.2.1", "--token", TOKEN, "--behind-proxy"], "192.0.2.1"),
        (["--host", "no.such.host.invalid", "--token", TOKEN, "--behind-proxy"], "no.such.host.invalid"),
        (["--host", "a..b", "--token", TOKEN, "--behind-proxy"], "a..b"),
    ],
)
def test_what_cannot_or_must_not_listen_says_why(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDSIGHT_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    assert words in refused("--port", "0", "--store", str(tmp_path), *arguments)


def test_a_key_that_does_not_belong_to_the_certificate_is_named(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    certificate[1].write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    said = refused("--port", "0", "--cert", str(certificate[0]), "--key", str(certificate[1]), "--store", str(tmp_path))
    assert "server.key" in said


def test_killed_it_leaves_the_client_what_it_said_and_every_volume_whole(
    checkpoint: Path, tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    store = tmp_path / "store"
    volume = stack(np.arange(5 * 40 * 48, dtype=np.int16).reshape(5, 40, 48) % 777)
    address = f"/v1/volumes/{digest_of(volume)}"
    with started("--model", str(checkpoint), "--store", str(store)) as first:
        assert "Research use only" in first.greeting
        assert "from this computer only" in first.greeting
        body = b"".join(chunks_of(volume, codec=usable_codecs()[0]))
        assert first.session.put(first.url + address, data=body, timeout=PATIENCE).ok
        heard = []
        with pytest.raises(requests.RequestException):
            for line in first.chat(stream=True).iter_lines(chunk_size=1):
                heard.append(line)
                if b"text_delta" in line:
                    first.stop(signal.SIGKILL)
        assert any(b"text_delta" in line for line in heard)
        assert b"data: [DONE]" not in heard

    pem, key = map(str, certificate)
    options = ("--model", str(checkpoint), "--store", str(store), "--cert", pem, "--key", key)
    with started(*options, token=TOKEN) as second:
        assert second.url.startswith("https://")
        assert TOKEN not in second.greeting
        with pytest.raises(requests.exceptions.SSLError):
            second.session.get(f"{second.url}/healthz", timeout=PATIENCE)
        second.session.verify = pem
        assert second.session.head(second.url + address, timeout=PATIENCE).status_code == 200
        assert requests.get(f"{second.url}/v1/models", verify=pem, timeout=PATIENCE).status_code == 401

        reply = second.chat(stream=True)
        lines = reply.iter_lines(chunk_size=1)
        heard = [next(line for line in lines if b"text_delta" in line)]
        second.stop()
        heard += lines
        assert b"data: [DONE]" in heard
        code, out, log = second.ended()
        assert (code, out) == (0, "Stopped.\n")
        assert re.search(r"POST /v1/chat/completions 200 \d+ms", log)
        assert "Traceback" not in log
        assert TOKEN not in log


def test_told_twice_it_goes_at_once(checkpoint: Path, tmp_path: Path) -> None:
    with started("--model", str(checkpoint), "--store", str(tmp_path)) as server:
        replies: list[Any] = []
        thread = threading.Thread(target=lambda: replies.append(server.chat()))
        thread.start()
        while (
            "medsight_answers_under_way 1.0" not in server.session.get(f"{server.url}/metrics", timeout=PATIENCE).text
        ):
            pass
        server.stop(signal.SIGINT)
        while json.loads(server.session.get(f"{server.url}/readyz", timeout=PATIENCE).text).get("status") == "ready":
            pass
        server.stop(signal.SIGINT)
        code, _, log = server.ended()
        assert code == 0
        assert "Traceback" not in log
        thread.join(PATIENCE)
        assert not thread.is_alive()
