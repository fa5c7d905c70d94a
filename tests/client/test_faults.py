"""The HTTP edge: everything that a network, a proxy or a server can do wrong has a name, and keeps what came."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from medsight_core.backend import SegmentRequest
from medsight_core.client import RemoteBackend
from medsight_core.client.address import Address
from medsight_core.client.sse import Message, read_messages
from medsight_core.errors import InputError, MedSightError
from medsight_core.events import Done, Event, Failed, Progress, RegionFound, TextDelta, Warning
from medsight_core.imaging.volume import Volume
from medsight_core.regions import Question
from medsight_core.wire.volumes import receive
from tests.chat.scripted import answer, events_of, scan
from tests.client.certificates import certificate, serving_context
from tests.client.fake import INFO, Exchange, Fake, faking, problem, says, streams

CHAT = "POST /v1/chat/completions"
VOLUMES = ("HEAD /v1/volumes/", "PUT /v1/volumes/")
TEXT = "Die Milz — größer als 13 cm: 脾臓 🩻."
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with faking() as server:
        yield server


@pytest.fixture(scope="module")
def volume() -> Volume:
    return scan()


def ask(fake: Fake, volume: Volume, *, cancel: threading.Event | None = None, **options: object) -> list[Event]:
    """A question to the fake; the notes about sending are left out."""
    backend = RemoteBackend(fake.url, **options)  # type: ignore[arg-type]
    question = Question(text="What?", volume=volume, slice_index=2)
    return [event for event in backend.ask(question, cancel=cancel) if event != Progress(0, 0, "Sending the scan")]


def refused(fake: Fake, volume: Volume, **options: object) -> MedSightError:
    """Why a question is not answered; the sentence is whole and says who it was."""
    with pytest.raises(MedSightError) as caught:
        ask(fake, volume, **options)
    assert caught.value.sentence.endswith(".") and caught.value.remedy, caught.value
    return caught.value


@pytest.mark.parametrize("sizes", [1, 2, 3, 7, 10**6])
def test_a_stream_may_be_cut_anywhere_even_within_a_character(fake: Fake, volume: Volume, sizes: int) -> None:
    made = answer(volume, 2, TEXT, words=("脾臓",))
    whole = b": still at work\r\n\r\n" + b"".join(streams(volume, *events_of(made))) + b"data: [DONE]\n\n"
    pieces = [whole[start : start + sizes] for start in range(0, len(whole), sizes)]
    fake.replies[CHAT] = lambda exchange: exchange.stream(*pieces)
    events = ask(fake, volume)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == TEXT
    assert isinstance(events[-1], Done) and events[-1].answer.text == TEXT
    assert np.array_equal(events[-1].answer.regions[0].mask, made.regions[0].mask)
    assert isinstance(events[-2], RegionFound) and events[-2].region.frame is volume.slice_frame(2)


def test_messages_are_read_as_the_standard_says() -> None:
    stream = [b"\xef", b"event: a\r", b"\ndata: 1\r\ndata:2\r\r:x\n", b"id: 3\ndata\n\n\nevent: b\n\ndata: 4\n\nend"]
    assert list(read_messages(stream[1:])) == [Message("a", "1\n2"), Message("message", ""), Message("message", "4")]
    with pytest.raises(MedSightError, match="UTF-8"):
        list(read_messages([b"data: \xff\n\n"]))


def test_a_stream_without_chunks_is_read_as_it_comes(fake: Fake, volume: Volume) -> None:
    """As through a proxy that speaks HTTP/1.0."""
    gate = threading.Event()

    def reply(exchange: Exchange) -> None:
        exchange.send_response(200)
        exchange.send_header("Content-Type", "text/event-stream; charset=utf-8")
        exchange.end_headers()
        first, *rest = streams(volume, TextDelta("Now"), *events_of(answer(volume, 2)))
        exchange.wfile.write(first)
        exchange.wfile.flush()
        assert gate.wait(20)
        exchange.wfile.write(b"".join(rest))
        exchange.close_connection = True

    fake.replies[CHAT] = reply
    events = RemoteBackend(fake.url).ask(Question(text="What?", volume=volume, slice_index=2))
    while (event := next(events)) != TextDelta("Now"):
        assert isinstance(event, Progress)
    gate.set()
    assert isinstance(list(events)[-1], Done)


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (problem(401, "unauthorized"), "unauthorized", "It is unauthorized."),
        (problem(413, "too_large"), "too_large", "It is too_large."),
        (problem(426, "wrong_version"), "wrong_version", "It is wrong_version."),
        (problem(507, "out_of_memory"), "out_of_memory", "It is out_of_memory."),
        (problem(500, "internal_error"), "internal_error", "It is internal_error."),
        (problem(400, "prompt_outside"), "prompt_outside", "It is prompt_outside."),
        (says(413, b"Too large", "text/plain"), "too_large", "takes no request as large"),
        (says(401, b"", "text/plain"), "unauthorized", "wants a token"),
        (says(502, b"<html>Bad Gateway</html>", "text/html"), "not_medsight", "a proxy, not MedSIGHT"),
        (says(504, b"<html>Time-out</html>", "text/html; charset=utf-8"), "not_medsight", "a proxy, not MedSIGHT"),
        (says(503, b"", "text/plain"), "not_medsight", "a proxy, not MedSIGHT"),
        (says(500, b"oops", "text/plain"), "not_medsight", "500 Internal Server Error"),
        (says(200, b"<html>Log in</html>", "text/html"), "not_medsight", "a proxy, not MedSIGHT"),
        (says(200, {"choices": []}), "not_medsight", "not as MedSIGHT does"),
        (says(302, b"", "text/html", Location="https://elsewhere.example/"), "redirected", "another address"),
        (says(407, b"", "text/html"), "proxy_failed", "name and a password"),
        (says(418, {"code": 7}), "not_medsight", "418"),
    ],
)  # fmt: skip
def test_every_refusal_has_a_name(
    fake: Fake, volume: Volume, reply: Callable[[Exchange], None], code: str, words: str
) -> None:
    fake.replies[CHAT] = reply
    error = refused(fake, volume)
    assert error.code == code and words in error.sentence
    assert fake.routes().count(CHAT) == 1, "asked once"


def test_what_the_request_is_to_blame_for_is_an_input_error(fake: Fake, volume: Volume) -> None:
    fake.replies[CHAT] = problem(400, "prompt_outside")
    assert isinstance(refused(fake, volume), InputError)
    fake.replies[CHAT] = problem(507, "out_of_memory")
    assert not isinstance(refused(fake, volume), InputError)


def test_a_busy_server_is_asked_again_after_as_long_as_it_says(fake: Fake, volume: Volume) -> None:
    waits = iter([problem(429, "busy", Retry_After="0"), problem(429, "busy", Retry_After="1")])
    good = streams(volume, *events_of(answer(volume, 2)))
    last = lambda exchange: exchange.stream(*good)  # noqa: E731
    fake.replies[CHAT] = lambda exchange: next(waits, last)(exchange)
    start = time.monotonic()
    events = ask(fake, volume)
    assert time.monotonic() - start >= 1
    assert events[:2] == [Progress(0, 0, "Waiting for the server, which is busy")] * 2
    assert isinstance(events[-1], Done)


def test_a_server_that_stays_busy_is_left_alone(fake: Fake, volume: Volume) -> None:
    fake.replies[CHAT] = problem(429, "busy", Retry_After="0")
    assert refused(fake, volume).code == "busy"
    assert fake.routes().count(CHAT) == 6


def test_waiting_for_a_busy_server_can_be_stopped(fake: Fake, volume: Volume) -> None:
    cancel = threading.Event()

    def reply(exchange: Exchange) -> None:
        problem(429, "busy", Retry_After="30")(exchange)
        cancel.set()

    fake.replies[CHAT] = reply
    start = time.monotonic()
    events = ask(fake, volume, cancel=cancel)
    assert isinstance(events[-1], Failed) and events[-1].code == "stopped"
    assert time.monotonic() - start < 10


def test_a_volume_that_was_evicted_is_sent_again_once(fake: Fake, volume: Volume) -> None:
    good, kept = streams(volume, *events_of(answer(volume, 2))), [b"from before"]

    def head(exchange: Exchange) -> None:
        exchange.send(200 if kept else 404, b"", "application/json", MedSIGHT_Codecs="zlib")

    def put(exchange: Exchange) -> None:
        kept.append(exchange.content)
        exchange.send(201, b"{}", "application/json")

    def chat(exchange: Exchange) -> None:
        if kept:
            exchange.stream(*good)
        else:
            problem(409, "volume_unknown")(exchange)

    fake.replies.update({VOLUMES[0]: head, VOLUMES[1]: put, CHAT: chat})
    backend, question = RemoteBackend(fake.url), Question(text="What?", volume=volume, slice_index=2)
    handle = backend.open(volume)
    assert handle.sent == 0 and len(handle.digest) == 64
    assert isinstance(list(backend.ask(question))[-1], Done)
    kept.clear()
    events = list(backend.ask(question))
    assert Progress(0, 0, "Sending the scan") in events and isinstance(events[-1], Done)
    assert fake.routes()[-5:] == [
        CHAT, "HEAD /v1/volumes", "GET /v1/medsight/info", "PUT /v1/volumes", CHAT,
    ]  # fmt: skip
    (sent,) = kept
    rebuilt = receive([sent], digest=handle.digest, limit_bytes=10**9)
    assert np.array_equal(rebuilt.array, volume.array)
    fake.replies[CHAT] = problem(409, "volume_unknown")
    fake.seen.clear()
    with pytest.raises(MedSightError) as caught:
        list(backend.ask(question))
    assert caught.value.code == "volume_unknown" and fake.routes().count(CHAT) == 2


def test_a_scan_that_is_too_large_is_not_sent(fake: Fake, volume: Volume) -> None:
    fake.replies["GET /v1/medsight/info"] = says(200, INFO | {"limits": {"volume_bytes": 100}})
    fake.replies[VOLUMES[0]] = says(404, b"")
    assert refused(fake, volume).code == "too_large"
    assert not any(route.startswith("PUT") for route in fake.routes())


@pytest.mark.parametrize(
    "reply", [problem(507, "storage_full"), problem(413, "too_large"), problem(422, "wrong_digest")]
)
def test_an_upload_that_is_refused_is_not_taken_for_done(
    fake: Fake, volume: Volume, reply: Callable[[Exchange], None]
) -> None:
    fake.replies.update({VOLUMES[0]: says(404, b""), VOLUMES[1]: reply})
    backend = RemoteBackend(fake.url)
    for _ in range(2):
        with pytest.raises(MedSightError, match=r"It is \w+"):
            backend.open(volume)
    assert sum(route.startswith("PUT") for route in fake.routes()) == 2


@pytest.mark.parametrize("how", ["cut", "clean"])
def test_a_stream_that_breaks_off_keeps_its_words(fake: Fake, volume: Volume, how: str) -> None:
    parts = streams(volume, TextDelta("There is a "), TextDelta("liver"))
    fake.replies[CHAT] = lambda exchange: exchange.stream(*parts, end=how == "clean")
    events = ask(fake, volume)
    assert events[:2] == [TextDelta("There is a "), TextDelta("liver")]
    assert isinstance(events[2], Failed) and events[2].code == "interrupted" and "broke" in events[2].sentence


def test_a_server_that_falls_silent_is_given_up(fake: Fake, volume: Volume) -> None:
    gate = threading.Event()
    parts = streams(volume, TextDelta("There"))
    fake.replies[CHAT] = lambda exchange: exchange.stream(*parts, lambda: gate.wait(20), end=False)
    try:
        events = ask(fake, volume, read_seconds=0.3)
    finally:
        gate.set()
    assert events[0] == TextDelta("There")
    assert isinstance(events[1], Failed) and events[1].code == "interrupted" and "nothing" in events[1].sentence


def test_a_failure_in_the_stream_is_said_as_it_came(fake: Fake, volume: Volume) -> None:
    failed = Failed("out_of_memory", "Too large.", "Ask about less.")
    parts = streams(volume, TextDelta("There"), failed)
    fake.replies[CHAT] = lambda exchange: exchange.stream(*parts)
    assert ask(fake, volume) == [TextDelta("There"), failed]


@pytest.mark.parametrize("phase", ["head", "stream", "upload"])
def test_cancel_ends_the_connection_at_once(fake: Fake, volume: Volume, phase: str) -> None:
    cancel, gone, waiting = threading.Event(), threading.Event(), threading.Event()

    def until_gone(exchange: Exchange) -> None:
        waiting.set()
        exchange.connection.settimeout(20)
        if not exchange.connection.recv(1):
            gone.set()

    def reply(exchange: Exchange) -> None:
        if phase == "stream":
            exchange.stream(*streams(volume, TextDelta("There")), lambda: until_gone(exchange), end=False)
        else:
            until_gone(exchange)

    if phase == "upload":
        fake.replies.update({VOLUMES[0]: says(404, b""), VOLUMES[1]: reply})
    fake.replies[CHAT] = reply
    threading.Thread(target=lambda: waiting.wait(20) and cancel.set(), daemon=True).start()
    events = ask(fake, volume, cancel=cancel)
    assert isinstance(events[-1], Failed) and events[-1].code == "stopped"
    assert gone.wait(20), "the server saw the connection end"
    assert (TextDelta("There") in events) == (phase == "stream")


def test_leaving_the_stream_ends_the_connection(fake: Fake, volume: Volume) -> None:
    gone = threading.Event()

    def reply(exchange: Exchange) -> None:
        def wait() -> None:
            exchange.connection.settimeout(20)
            if not exchange.connection.recv(1):
                gone.set()

        exchange.stream(*streams(volume, TextDelta("There")), wait, end=False)

    fake.replies[CHAT] = reply
    events = RemoteBackend(fake.url).ask(Question(text="What?", volume=volume, slice_index=2))
    while not isinstance(next(events), TextDelta):
        pass
    events.close()  # type: ignore[attr-defined]
    assert gone.wait(20)


def damaged(volume: Volume, change: Callable[[dict], object]) -> list[bytes]:
    """A good stream but for one thing about its mask."""
    made = []
    for message in streams(volume, *events_of(answer(volume, 2, words=("liver",)))):
        content = json.loads(message[6:])
        if content["medsight"]["type"] == "region_found":
            change(content["medsight"]["region"]["mask"])
        made.append(b"data: %s\n\n" % json.dumps(content).encode())
    return made


@pytest.mark.parametrize(
    "change",
    [
        lambda mask: mask.update(data=mask["data"][: len(mask["data"]) // 8 * 4]),
        lambda mask: mask.update(data=""),
        lambda mask: mask.update(data="%%%"),
        lambda mask: mask.update(shape=[24, 33]),
        lambda mask: mask.update(shape=[5, 24, 32]),
        lambda mask: mask.update(box=[[0, 25], [0, 32]]),
        lambda mask: mask.update(box=[[0, 24], [0, 32]]),
        lambda mask: mask.update(box=[[5, 12], [4, 11]]),
        lambda mask: (mask.pop("data"), mask.update(url="http://elsewhere.example/v1/masks/a")),
        lambda mask: (mask.pop("data"), mask.update(url="/v1/masks/../../etc")),
        lambda mask: (mask.pop("data"), mask.update(url="//elsewhere.example/v1/masks/a")),
        lambda mask: (mask.clear(), mask.update({"of": 3})),
    ],
)
def test_a_wrong_mask_is_an_error_and_never_a_mask(
    fake: Fake, volume: Volume, change: Callable[[dict], object]
) -> None:
    parts = damaged(volume, change)
    fake.replies[CHAT] = lambda exchange: exchange.stream(*parts)
    events = ask(fake, volume)
    assert not any(isinstance(event, RegionFound | Done) for event in events)
    assert isinstance(events[-1], Failed) and events[-1].code in ("bad_reply", "bad_mask")
    assert events[1:-1], "the words before it stay"
    assert all(route.startswith(("HEAD", "POST")) for route in fake.routes()), "nothing else was fetched"


def test_large_masks_are_fetched_from_the_server_alone(fake: Fake, volume: Volume) -> None:
    made = answer(volume, 2, words=("liver",))
    packed = {}

    def change(mask: dict) -> None:
        packed.update({name: mask.pop(name) for name in ("shape", "box", "data")})
        mask["url"] = "/v1/masks/aB_-9"

    parts = damaged(volume, change)
    fake.replies[CHAT] = lambda exchange: exchange.stream(*parts)
    fake.replies["GET /v1/masks/aB_-9"] = lambda exchange: says(200, {"mask": packed})(exchange)
    events = ask(fake, volume, token="secret")
    assert isinstance(events[-1], Done)
    assert np.array_equal(events[-1].answer.regions[0].mask, made.regions[0].mask)
    fake.replies["GET /v1/masks/aB_-9"] = problem(404, "mask_unknown")
    last = ask(fake, volume, token="secret")[-1]
    assert isinstance(last, Failed) and last.code == "mask_unknown"


def test_another_model_behind_the_same_address_is_said(fake: Fake, volume: Volume) -> None:
    good = streams(volume, *events_of(answer(volume, 2)))
    digests = iter(["d1", "d2", "d2"])
    fake.replies[CHAT] = lambda exchange: exchange.stream(*good, MedSIGHT_Model=next(digests))
    backend = RemoteBackend(fake.url)
    warned = [
        any(isinstance(event, Warning) and "another model" in event.sentence for event in backend.ask(question))
        for question in [Question(text="What?", volume=volume, slice_index=2)] * 3
    ]
    assert warned == [False, True, False]


def test_every_request_says_who_asks_and_what_it_speaks(
    fake: Fake, volume: Volume, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    good = streams(volume, *events_of(answer(volume, 2)))
    fake.replies[CHAT] = lambda exchange: exchange.stream(*good)
    ask(fake, volume, token="secret-1")
    for _, headers, _ in fake.seen:
        assert headers["Authorization"] == "Bearer secret-1"
        assert headers["MedSIGHT-Protocol"] == "1" and headers["User-Agent"].startswith("medsight/")
    fake.seen.clear()
    ask(fake, volume)
    assert fake.seen and not any("Authorization" in headers for _, headers, _ in fake.seen)


def test_segmenting_asks_for_a_stream(fake: Fake, volume: Volume) -> None:
    parts = [
        message.replace(b'{"medsight": ', b"", 1)[:-3] + b"\n\n"
        for message in streams(volume, *events_of(answer(volume, 2)))
    ]
    fake.replies["POST /v1/segment"] = lambda exchange: exchange.stream(*parts)
    request = SegmentRequest(volume=volume, slice_index=2, text="liver")
    assert isinstance(list(RemoteBackend(fake.url).segment(request))[-1], Done)
    _, headers, body = fake.seen[-1]
    assert headers["Accept"] == "text/event-stream" and json.loads(body)["text"] == "liver"


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def failed_step(backend: RemoteBackend) -> tuple[list[str], str, str]:
    """Steps that are right, the one that is not, and its code."""
    *right, last = backend.check()
    assert all(check.error is None for check in right) and last.error is not None
    return [check.step for check in right], last.step, last.error.code


def test_the_check_names_what_is_wrong(fake: Fake, volume: Volume) -> None:
    fake.replies["GET /readyz"] = says(200, {"status": "ready"})
    assert [check.step for check in RemoteBackend(fake.url).check()] == ["host", "port", "token", "version", "model"]
    assert all(check.error is None for check in RemoteBackend(fake.url).check())
    fake.replies["GET /readyz"] = problem(503, "device_failed")
    assert failed_step(RemoteBackend(fake.url)) == (["host", "port", "token", "version"], "model", "device_failed")
    fake.replies["GET /v1/medsight/info"] = says(200, INFO | {"protocol": 2})
    assert failed_step(RemoteBackend(fake.url)) == (["host", "port", "token"], "version", "wrong_version")
    fake.replies["GET /v1/medsight/info"] = problem(401, "unauthorized")
    assert failed_step(RemoteBackend(fake.url)) == (["host", "port"], "token", "unauthorized")
    for reply in (says(200, b"<html>", "text/html"), says(200, {"a": 1}), says(404, b""), says(200, b"[]")):
        fake.replies["GET /v1/medsight/info"] = reply
        assert failed_step(RemoteBackend(fake.url)) == (["host"], "port", "not_medsight")
    port = closed_port()
    assert failed_step(RemoteBackend(f"http://127.0.0.1:{port}")) == (["host"], "port", "connection_refused")
    assert failed_step(RemoteBackend("https://nowhere.invalid")) == ([], "host", "unknown_host")


def test_certificates_are_always_checked(tmp_path: Path) -> None:
    paths = certificate(tmp_path / "good")
    with faking(serving_context(paths)) as fake:
        fake.replies["GET /readyz"] = says(200, {"status": "ready"})
        assert failed_step(RemoteBackend(fake.url)) == (["host", "port"], "TLS", "tls_untrusted")
        assert fake.seen == [], "nothing was sent, the token least of all"
        assert [check.step for check in RemoteBackend(fake.url, ca=paths[0]).check()][2] == "TLS"
        assert RemoteBackend(fake.url, ca=paths[0]).info().model == "fake"
        other, _ = certificate(tmp_path / "other")
        assert failed_step(RemoteBackend(fake.url, ca=other))[2] == "tls_untrusted"
    with faking(serving_context(wrong := certificate(tmp_path / "wrong", host="elsewhere.example"))) as fake:
        assert failed_step(RemoteBackend(fake.url, ca=wrong[0])) == (["host", "port"], "TLS", "tls_wrong_host")
    with faking(serving_context(old := certificate(tmp_path / "old", days=(-9, -2)))) as fake:
        assert failed_step(RemoteBackend(fake.url, ca=old[0])) == (["host", "port"], "TLS", "tls_expired")
    with faking() as fake:
        assert failed_step(RemoteBackend(fake.url.replace("http:", "https:")))[1:] == ("TLS", "tls_failed")
    with pytest.raises(InputError, match="no certificate"):
        RemoteBackend("https://a.example", ca=tmp_path / "nothing.pem")
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(InputError, match="no certificate"):
        RemoteBackend("https://a.example", ca=tmp_path / "text.pem")


def test_a_stream_over_tls_can_be_cancelled(tmp_path: Path, volume: Volume) -> None:
    paths, cancel, gate = certificate(tmp_path), threading.Event(), threading.Event()
    with faking(serving_context(paths)) as fake:
        parts = streams(volume, TextDelta("There"))
        fake.replies[CHAT] = lambda exchange: exchange.stream(*parts, lambda: gate.wait(20), end=False)
        events = RemoteBackend(fake.url, ca=paths[0]).ask(
            Question(text="What?", volume=volume, slice_index=2), cancel=cancel
        )
        while not isinstance(next(events), TextDelta):
            pass
        cancel.set()
        (last,) = events
        gate.set()
    assert isinstance(last, Failed) and last.code == "stopped"


def test_a_proxy_is_never_asked_about_this_computer(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES[:3]:
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    assert RemoteBackend(fake.url).info().model == "fake"
    assert RemoteBackend(fake.url.replace("127.0.0.1", "localhost")).info().model == "fake"


def test_a_proxy_is_asked_about_other_computers(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", fake.url)
    fake.replies["GET http://gpu.invalid:80/v1/medsight/info"] = fake.replies["GET /v1/medsight/info"]
    assert RemoteBackend("http://gpu.invalid", insecure_http=True).info().model == "fake"
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port()}")
    assert failed_step(RemoteBackend("https://gpu.invalid"))[1:] == ("proxy", "proxy_failed")
    monkeypatch.setenv("no_proxy", "gpu.invalid")
    assert failed_step(RemoteBackend("https://gpu.invalid"))[1:] == ("host", "unknown_host")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8765", "http://localhost:8765"),
        ("127.0.0.1:1", "http://127.0.0.1:1"),
        ("http://[::1]:8765/", "http://[::1]:8765"),
        ("gpu.example", "https://gpu.example:443"),
        ("gpu.example:9000/medsight/", "https://gpu.example:9000/medsight"),
        ("HTTPS://GPU.example", "https://gpu.example:443"),
        ("http://localhost:8765/v1", "http://localhost:8765"),
        ("gpu.example/medsight/v1/", "https://gpu.example:443/medsight"),
    ],
)
def test_addresses_are_read_as_people_write_them(text: str, url: str) -> None:
    assert str(Address.parse(text)) == url


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "bad_address"),
        ("http://", "bad_address"),
        ("ftp://a.example", "bad_address"),
        ("https://a.example:port", "bad_address"),
        ("https://a.example:99999", "bad_address"),
        ("https://user:secret@a.example", "bad_address"),
        ("https://a.example/?q=1", "bad_address"),
        ("https://a .example", "bad_address"),
        ("https://a..example", "bad_address"),
        ("http://gpu.example", "insecure_http"),
        ("http://10.0.0.1:8765", "insecure_http"),
        ("http://127.0.0.1.example", "insecure_http"),
    ],
)
def test_bad_addresses_are_refused(text: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        Address.parse(text)
    assert caught.value.code == code and "secret" not in str(caught.value)


def test_a_token_is_a_header(fake: Fake) -> None:
    for token in ("", "a b", "a\nb", "ä"):
        with pytest.raises(InputError, match="token"):
            RemoteBackend(fake.url, token=token)
    assert "secret-1" not in repr(RemoteBackend(fake.url, token="secret-1"))
