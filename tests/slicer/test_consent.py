"""Nothing leaves before it may: not a byte, to nobody else, and afterwards no more than what was said."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medsight_core.backend import SegmentRequest, Whole
from medsight_core.chat import Conversation, put
from medsight_core.client import RemoteBackend
from medsight_core.client.address import Address
from medsight_core.errors import MedSightError
from medsight_core.events import Done, Failed, Progress, TextDelta
from medsight_core.imaging.volume import Source, Volume
from medsight_core.regions import Question
from tests.chat.scripted import answer, events_of, scan
from tests.client.fake import Exchange, Fake, faking, problem, says, streams
from tests.client.relay import Relay, relaying
from tests.slicer.backing import connected, stored

pytest.importorskip("qtpy", reason="the settings need Qt")

SERVER = Address.parse("https://gpu.example")
SECRETS = ("Mustermann^Erika", "19700101", "1.2.840.99999.1.2.3", "/patients/erika", "Kommentar")


@pytest.fixture
def volume() -> Volume:
    """A scan whose source knows who the patient is."""
    source = Source(
        kind="dicom",
        paths=(Path("/patients/erika/Mustermann^Erika/19700101.dcm"),),
        series_uid="1.2.840.99999.1.2.3",
        frame_of_reference_uid="1.2.840.99999.1.2.3.4",
        dicom_modality="CT",
        description="Mustermann^Erika Kommentar",
    )
    return replace(scan(), source=source)


@pytest.fixture
def places() -> Iterator[tuple[Fake, Relay]]:
    """A server that answers, and the relay in front of it that counts bytes."""
    kept: list[int] = []
    with faking() as fake, relaying(fake.url) as relay:
        made = scan()
        parts = streams(made, *events_of(answer(made, 2, words=("liver",))))
        fake.replies["HEAD /v1/volumes/"] = lambda exchange: says(200 if kept else 404, b"")(exchange)
        fake.replies["PUT /v1/volumes/"] = lambda exchange: (kept.append(1), says(201, {})(exchange))[1]
        fake.replies["POST /v1/chat/completions"] = lambda exchange: exchange.stream(*parts)
        fake.replies["POST /v1/segment"] = lambda exchange: exchange.stream(*parts)
        yield fake, relay


def questions(volume: Volume) -> list[Any]:
    """Whatever can be asked of a backend."""
    plain = Question(text="What?", volume=volume, slice_index=2)
    request = SegmentRequest(volume=volume, slice_index=2, text="liver")
    return [
        lambda backend: backend.info(),
        lambda backend: backend.open(volume),
        lambda backend: list(backend.ask(plain)),
        lambda backend: list(backend.ask(plain, whole=Whole(), cancel=threading.Event(), max_new_tokens=5)),
        lambda backend: list(backend.segment(request)),
    ]


def test_not_a_byte_leaves_before_consent(lib: Any, tmp_path: Path, volume: Volume, places: tuple[Fake, Relay]) -> None:
    fake, relay = places
    connection = connected(lib, tmp_path, url=relay.url, token="tok-secret")
    with pytest.raises(MedSightError, match="Nothing was sent") as caught:
        connection.connect()
    assert caught.value.code == "no_consent" and caught.value.remedy
    guarded = lib.consent.Consented(
        RemoteBackend(relay.url), lambda volume: connection.consents.require(connection.address, volume)
    )
    for ask in questions(volume):
        with pytest.raises(MedSightError, match="Nothing was sent"):
            ask(guarded)
    conversation = Conversation()
    for event in put(conversation.ask("What?", slice_index=2), guarded, volume):
        conversation.take(event)
    assert conversation.last is not None and "Nothing was sent" in conversation.last.note
    assert relay.sent == 0 and fake.seen == []
    connection.consents.give(connection.address)
    for ask in questions(volume):
        ask(connection.connect())
    assert relay.sent > 1000 and fake.routes().count("PUT /v1/volumes") == 1


def test_what_leaves_says_nothing_about_the_patient(
    lib: Any, tmp_path: Path, volume: Volume, places: tuple[Fake, Relay]
) -> None:
    fake, relay = places
    connection = connected(lib, tmp_path, url=relay.url)
    connection.consents.give(connection.address)
    for ask in questions(volume):
        ask(connection.connect())
    everything = repr(fake.seen)
    assert "liver" in everything and len(fake.seen) > 6
    for secret in SECRETS:
        assert secret not in everything


def test_consent_is_for_one_scheme_host_and_port(lib: Any, tmp_path: Path) -> None:
    consents = lib.consent.Consents(stored(lib, tmp_path))
    assert not consents.allows(SERVER)
    consents.give(SERVER)
    for url in ("gpu.example", "https://GPU.example:443/", "https://gpu.example/medsight"):
        assert consents.allows(Address.parse(url))
    others = ("https://gpu.example:8443", "http://gpu.example", "https://gpu.example.org", "https://127.0.0.1")
    for url in (*others, "http://localhost:8765", "http://127.0.0.1:8765"):
        assert not consents.allows(Address.parse(url, insecure_http=True)), url
    again = lib.consent.Consents(stored(lib, tmp_path))
    assert again.allows(SERVER) and again.servers == ("https://gpu.example:443",)
    again.revoke("https://gpu.example:443")
    assert not again.allows(SERVER) and not lib.consent.Consents(stored(lib, tmp_path)).allows(SERVER)


def test_our_own_server_needs_none_and_no_other_on_this_computer(lib: Any, tmp_path: Path, volume: Volume) -> None:
    own = ["http://127.0.0.1:4711"]
    consents = lib.consent.Consents(stored(lib, tmp_path), lambda: own[0])
    assert consents.allows(Address.parse("http://127.0.0.1:4711"), volume)
    assert not consents.allows(Address.parse("http://127.0.0.1:4712")), "it may be a tunnel to anywhere"
    assert not consents.allows(Address.parse("http://localhost:4711"))
    own[0] = ""
    assert not consents.allows(Address.parse("http://127.0.0.1:4711"))
    own[0] = SERVER.origin
    assert not consents.allows(SERVER), "only on this computer"


def ultrasound(volume: Volume) -> Volume:
    return replace(volume, modality="Ultrasound", source=replace(volume.source, dicom_modality="US"))


def test_a_scan_that_may_show_a_name_is_asked_about_by_itself(
    lib: Any, tmp_path: Path, volume: Volume, places: tuple[Fake, Relay]
) -> None:
    _, relay = places
    first, second = ultrasound(volume), ultrasound(volume)
    connection = connected(lib, tmp_path, url=relay.url)
    connection.consents.give(connection.address)
    backend = connection.connect()
    with pytest.raises(MedSightError, match="may show who the patient is"):
        list(backend.ask(Question(text="What?", volume=first, slice_index=2)))
    assert relay.sent == 0 and connection.waiting is first
    outline = replace(first, array=first.array * 0)
    connection.consents.give(connection.address, outline)
    assert isinstance(list(backend.ask(Question(text="What?", volume=first, slice_index=2)))[-1], Done)
    assert not connection.consents.allows(connection.address, second), "another scan of the same kind"
    connection.consents.revoke(connection.address.origin)
    assert not connection.consents.allows(connection.address, first)
    connection.consents.give(connection.address, volume)
    later = replace(volume, modality="Ultrasound")  # as a person says who knows better than the file
    assert not connection.consents.allows(connection.address, later), "nobody had looked for a name then"


def test_withdrawn_is_withdrawn_at_once(lib: Any, tmp_path: Path, volume: Volume, places: tuple[Fake, Relay]) -> None:
    _, relay = places
    connection = connected(lib, tmp_path, url=relay.url)
    connection.consents.give(connection.address)
    backend = connection.connect()
    list(backend.ask(Question(text="What?", volume=volume, slice_index=2)))
    before = relay.sent
    connection.consents.revoke(connection.address.origin)
    with pytest.raises(MedSightError, match="Nothing was sent"):
        list(backend.ask(Question(text="What?", volume=volume, slice_index=2)))
    assert relay.sent == before


def test_another_address_asks_again_and_sends_nothing_there(
    lib: Any, tmp_path: Path, volume: Volume, places: tuple[Fake, Relay]
) -> None:
    _, relay = places
    connection = connected(lib, tmp_path, url="https://allowed.example")
    connection.consents.give(connection.address)
    first = connection.connect()
    assert connection.connect() is first, "the same one, so that the scan is not sent again"
    connection.store.save(replace(connection.store.settings, url=relay.url))
    with pytest.raises(MedSightError, match=r"allowed scans to be sent to 127\.0\.0\.1"):
        connection.connect()
    assert relay.sent == 0


def test_a_guarded_backend_is_the_backend(lib: Any, volume: Volume) -> None:
    """Events, progress and ends pass; who leaves the stream ends what is behind it."""
    closed: list[str] = []

    class Behind:
        def info(self) -> str:
            return "info"

        def open(self, volume: Volume, *, on_progress: Any) -> str:
            on_progress(Progress(1, 2, "Sending the scan"))
            return "handle"

        def ask(self, question: Question, **options: Any) -> Iterator[Any]:
            try:
                yield TextDelta("The ")
                yield Failed("unauthorized", "It wants a token.", "Give it with --token.")
            finally:
                closed.append("ask")

        def close(self) -> None:
            closed.append("close")

    backend = lib.consent.Consented(Behind(), lambda volume: None, lib.connection.worded)
    steps: list[Progress] = []
    assert backend.info() == "info" and backend.open(volume, on_progress=steps.append) == "handle" and len(steps) == 1
    events = backend.ask(Question(text="What?", volume=volume, slice_index=2))
    assert next(events) == TextDelta("The ")
    failed = next(events)
    assert (failed.code, failed.sentence) == ("unauthorized", "It wants a token.") and "settings" in failed.remedy
    events.close()
    backend.close()
    assert closed == ["ask", "close"]


def test_the_statement_says_what_is_true(lib: Any, volume: Volume) -> None:
    plain = lib.consent.statement(SERVER, volume)
    assert plain.server == "https://gpu.example:443" and plain.size.startswith("5 × 24 × 32 voxels, 0.0 MiB")
    assert not any("name" in one for one in plain.cautions if "pixels" in one)
    open_road = lib.consent.statement(Address.parse("http://gpu.example", insecure_http=True), ultrasound(volume))
    assert "pixels" in open_road.cautions[0] and "not encrypted" in open_road.cautions[1]
    assert lib.consent.statement(SERVER).size == ""


def button_of(dialog: Any, name: str) -> Any:
    from PySide6 import QtWidgets

    return QtWidgets.QDialog.findChild(dialog, QtWidgets.QPushButton, name)


def pressed(lib: Any, dialog: Any, name: str) -> None:
    button_of(dialog, name).click()
    lib.settle(20)


@pytest.mark.parametrize(("button", "allowed"), [("MedSIGHTAllow", True), ("MedSIGHTRefuse", False), ("", False)])
def test_the_dialog_is_answered_once_and_goes(lib: Any, volume: Volume, button: str, allowed: bool) -> None:
    from PySide6 import QtWidgets

    parent = QtWidgets.QWidget()
    said: list[bool] = []
    dialog = lib.consentdialog.ask_consent(parent, lib.consent.statement(SERVER, volume), said.append)
    assert button_of(dialog, "MedSIGHTRefuse").isDefault()
    if button:
        pressed(lib, dialog, button)
    else:
        dialog.reject()  # as Escape and the cross do
        lib.settle(20)
    assert said == [allowed] and not lib._qt.alive(dialog)
    parent.deleteLater()
    lib.settle()


def test_what_is_asked_waits_for_the_answer(lib: Any, tmp_path: Path, volume: Volume) -> None:
    from PySide6 import QtWidgets

    parent, went = QtWidgets.QWidget(), []
    connection = connected(lib, tmp_path, url="https://gpu.example")

    def shown() -> Any:
        return parent.findChild(QtWidgets.QDialog, "MedSIGHTConsent")

    connection.when_allowed(parent, volume, lambda: went.append(1))
    assert went == [] and shown() is not None
    pressed(lib, shown(), "MedSIGHTRefuse")
    assert went == [] and not connection.consents.allows(SERVER)
    connection.when_allowed(parent, volume, lambda: went.append(1))
    pressed(lib, shown(), "MedSIGHTAllow")
    assert went == [1] and connection.consents.allows(SERVER)
    connection.when_allowed(parent, volume, lambda: went.append(2))
    assert went == [1, 2] and shown() is None, "asked once"
    connection.when_allowed(parent, ultrasound(volume), lambda: went.append(3))
    assert went == [1, 2]
    pressed(lib, shown(), "MedSIGHTAllow")
    assert went == [1, 2, 3]
    connection.store.save(lib.settings.Settings(where="server", url=""))
    connection.when_allowed(parent, volume, lambda: went.append(4))
    assert went[-1] == 4, "who cannot be asked at all says so"
    parent.deleteLater()
    lib.settle()


def test_the_local_model_is_not_reached_before_it_runs(lib: Any, tmp_path: Path) -> None:
    connection = connected(lib, tmp_path)
    with pytest.raises(MedSightError, match="is starting") as caught:
        connection.connect()
    assert caught.value.code == "not_running" and connection.local.started == 1, "somebody asked for it"
    for state, words in (("missing", "not installed"), ("failed", "not running"), ("stopping", "not running")):
        connection.local.state = state
        with pytest.raises(MedSightError, match=words):
            connection.connect()
    assert connection.local.started == 1
    connection.local.url = connection.local.origin = "http://127.0.0.1:4711"
    connection.local.token = "t" * 40
    assert connection.connect() is connection.connect()


def test_an_error_while_asking_is_worded_for_this_viewer(lib: Any, tmp_path: Path, volume: Volume) -> None:
    def refuse(exchange: Exchange) -> None:
        problem(401, "unauthorized")(exchange)

    with faking() as fake:
        fake.replies["HEAD /v1/volumes/"] = refuse
        connection = connected(lib, tmp_path, url=fake.url)
        connection.consents.give(connection.address)
        with pytest.raises(MedSightError) as caught:
            list(connection.connect().ask(Question(text="What?", volume=volume, slice_index=2)))
    assert "settings" in caught.value.remedy and caught.value.code == "unauthorized"
