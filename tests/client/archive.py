"""A DICOM archive for tests: takes STOW-RS as the standard says, reads every part of it, and can be told to fail."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom

from tests.client.certificates import certificate, serving_context


@dataclass
class FakeArchive:
    """What came, and what is answered.

    Attributes:
        url: Where DICOMweb begins.
        parts: What came, in order.
        stored: What was stored of it.
        headers: Of each request.
        paths: Of each request.
        answer: Status, content type and body in place of the usual ones.
        wants: The authorization that lets in.
        certificate: File with the certificate that it shows; None over http.
    """

    url: str = ""
    parts: list[bytes] = field(default_factory=list)
    stored: list[pydicom.Dataset] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    answer: tuple[int, str, bytes] | None = None
    wants: str = ""
    certificate: Path | None = None
    slowly: threading.Event | None = None


@contextmanager
def fake_archive(folder: Path | None = None) -> Iterator[FakeArchive]:
    """Runs one, with TLS if it is given a folder for its certificate."""
    archive = FakeArchive()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            archive.paths.append(self.path)
            archive.headers.append(dict(self.headers.items()))
            if archive.slowly is not None:
                archive.slowly.wait(20)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if archive.wants and self.headers.get("Authorization") != archive.wants:
                return self._say(401, "text/plain", b"no")
            parts = read_multipart(self.headers["Content-Type"], body)
            archive.parts += parts
            if archive.answer is not None:
                return self._say(*archive.answer)
            archive.stored += [pydicom.dcmread(BytesIO(part)) for part in parts]
            said = {
                "00081199": {
                    "vr": "SQ",
                    "Value": [
                        {
                            "00081150": {"vr": "UI", "Value": [str(one.SOPClassUID)]},
                            "00081155": {"vr": "UI", "Value": [str(one.SOPInstanceUID)]},
                        }
                        for one in archive.stored[-len(parts) :]
                    ],
                }
            }
            self._say(200, "application/dicom+json", json.dumps(said).encode())

        def _say(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    scheme = "http"
    if folder is not None:
        files = certificate(folder)
        archive.certificate = files[0]
        server.socket = serving_context(files).wrap_socket(server.socket, server_side=True)
        scheme = "https"
    archive.url = f"{scheme}://127.0.0.1:{server.server_port}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def read_multipart(content_type: str, body: bytes) -> list[bytes]:
    """The parts of a multipart/related message (RFC 2387, RFC 2046), strictly."""
    head = Message()
    head["Content-Type"] = content_type
    assert head.get_content_type() == "multipart/related"
    assert head.get_param("type") == "application/dicom"
    boundary = str(head.get_param("boundary"))
    assert 0 < len(boundary) <= 70
    opening, closing = f"--{boundary}\r\n".encode(), f"--{boundary}--".encode()
    assert body.startswith(opening)
    whole, _, rest = body.rpartition(b"\r\n" + closing)
    assert rest.strip() == b"", "nothing behind the end"
    parts = []
    for part in whole[len(opening) :].split(b"\r\n" + opening):
        fields, _, content = part.partition(b"\r\n\r\n")
        assert fields.lower() == b"content-type: application/dicom"
        assert boundary.encode() not in content
        parts.append(content)
    return parts


def basic(user: str, password: str) -> str:
    """What lets a user in."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
