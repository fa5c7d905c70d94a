"""A server with the embedded model that answers questions where there is no network: run by `test_isolation`.

In a network namespace of its own it finds no interface but a loopback that is down, which it brings up. Every attempt
to reach anything is written down before the system is asked, so that also an attempt that fails is seen.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

ATTEMPTS = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1


def raise_loopback() -> None:
    """`ip link set lo up`, where there may be no ``ip``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name = b"lo".ljust(16, b"\0")
        flags = struct.unpack("16sh", fcntl.ioctl(sock, _GET_FLAGS, name + bytes(2))[:18])[1]
        fcntl.ioctl(sock, _SET_FLAGS, name + struct.pack("h", flags | _UP) + bytes(14))


def is_outside(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audited event reaches for anything but this machine; looking a name up counts."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return False  # a socket of the file system
    text = host.decode("latin-1") if isinstance(host, bytes) else str(host or "localhost")
    try:
        return not ipaddress.ip_address(text).is_loopback
    except ValueError:
        return text != "localhost"


def watch() -> list[str]:
    """The list into which every attempt to reach outside goes from now on."""
    outside: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ATTEMPTS and is_outside(event, arguments):
            outside.append(f"{event} {arguments}")

    sys.addaudithook(hook)
    return outside


def main() -> None:
    """Prints as JSON what was answered and what was attempted."""
    outside = watch()
    interfaces = [name for _, name in socket.if_nameindex()]
    if interfaces == ["lo"]:
        raise_loopback()
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=2).close()
        reached = True
    except OSError:
        reached = False
    noticed = len(outside)  # the watch works: it saw this very attempt
    outside.clear()

    from medsight_core.backend import SegmentRequest, Stroke
    from medsight_core.client import RemoteBackend
    from medsight_core.events import fold
    from medsight_core.inference.engine import Engine
    from medsight_core.inference.scheduler import Scheduler
    from medsight_core.regions import Prompt, Question
    from tests.inference.tiny import stack
    from tests.server.hosting import application, hosted

    scheduler = Scheduler(Engine.from_pretrained(None, device="cpu"))
    volume = stack(np.random.default_rng(0).integers(0, 1500, (3, 60, 70)).astype(np.int16))
    with hosted(application(scheduler, Path(sys.argv[1]))) as url:
        backend = RemoteBackend(url)
        model = backend.info().model
        answer = fold(backend.ask(Question(text="What is seen here?", volume=volume, slice_index=1), max_new_tokens=16))
        centre = volume.slice_frame(1).to_lps([(0, 30, 35)])
        stroke = Stroke(slice_index=1, prompt=Prompt(kind="point", points=centre))
        click = fold(backend.segment(SegmentRequest(volume=volume, slice_index=1, strokes=(stroke,))))
    scheduler.close()
    made = {"interfaces": interfaces, "reached": reached, "noticed": noticed, "outside": outside, "model": model}
    made |= {"text": answer.text, "click": click.text, "threads": threading.active_count()}
    sys.stdout.write(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
