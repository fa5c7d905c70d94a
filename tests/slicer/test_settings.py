"""Settings outlive the viewer, tokens only if they may; addresses are read as people type them; the page says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medsight_core.backend import Info
from medsight_core.client import Check
from medsight_core.errors import InputError
from tests.client.fake import INFO, Fake, faking, problem, says
from tests.slicer.backing import connected, kept, stored, until
from tests.slicer.heart import beating

pytest.importorskip("qtpy", reason="the settings need Qt")

TOKEN = "tok-abcdefghijklmnop"


@pytest.fixture
def fake() -> Iterator[Fake]:
    with faking() as server:
        server.replies["GET /readyz"] = says(200, {"status": "ready"})
        yield server


def test_settings_come_back_and_the_token_only_if_it_may(lib: Any, tmp_path: Path) -> None:
    store = stored(lib, tmp_path)
    assert store.settings == lib.settings.Settings() and store.settings.where == "here"
    one = lib.settings.Settings(where="server", url="https://a.example", token=TOKEN, insecure_http=True, gpu=True)
    told: list[int] = []
    store.on_change(lambda: told.append(1))
    store.save(one)
    store.save(one)
    assert told == [1] and store.settings is one
    assert TOKEN not in kept(store, tmp_path) and TOKEN not in repr(one)
    assert stored(lib, tmp_path).settings == lib.settings.replace(one, token="")
    store.save(lib.settings.replace(one, keep_token=True))
    assert TOKEN in kept(store, tmp_path)
    assert stored(lib, tmp_path).settings.token == TOKEN
    store.save(one)
    assert TOKEN not in kept(store, tmp_path), "forgotten in the file as well"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"url": 3}', '{"where": "moon"}', '{"now": 1, "url": null}', "[" * 9999, '{"gpu": "yes"}'],
)  # fmt: skip
def test_what_cannot_be_read_is_left_out(lib: Any, tmp_path: Path, text: str) -> None:
    store = stored(lib, tmp_path)
    store._file.setValue("MedSIGHT/backend", text)
    store._file.setValue("MedSIGHT/token", text)
    store._file.setValue("MedSIGHT/consent", text)
    again = stored(lib, tmp_path)
    assert again.settings == lib.settings.Settings()
    assert lib.consent.Consents(again).servers == ()


@pytest.mark.parametrize(
    ("typed", "address", "noted"),
    [
        ("gpu.hospital.example", "https://gpu.hospital.example:443", ""),
        ("  https://gpu.hospital.example/ \n", "https://gpu.hospital.example:443", ""),
        ('"https://gpu.hospital.example".', "https://gpu.hospital.example:443", ""),
        ("https://gpu.hospital.example/v1", "https://gpu.hospital.example:443", "/v1"),
        ("https://gpu.hospital.example/medsight/v1/", "https://gpu.hospital.example:443/medsight", "/v1"),
        ("localhost", "http://localhost:8765", "8765"),
        ("127.0.0.1", "http://127.0.0.1:8765", "8765"),
        ("::1", "http://[::1]:8765", "8765"),
        ("localhost:9000", "http://localhost:9000", ""),
        ("0.0.0.0:8765", "http://127.0.0.1:8765", "0.0.0.0 is where a server listens"),
        ("http://0.0.0.0:8765/", "http://127.0.0.1:8765", "this computer"),
        ("0.0.0.0", "http://127.0.0.1:8765", "0.0.0.0"),
        ("http://[::]:8765", "http://127.0.0.1:8765", "this computer"),
        ("https://u:secret@a.example/x", "https://a.example:443/x", "takes a token instead"),
        ("u:secret@a.example", "https://a.example:443", "takes a token instead"),
        ("https://10.0.0.0.example", "https://10.0.0.0.example:443", ""),
    ],
)  # fmt: skip
def test_an_address_is_what_was_meant(lib: Any, typed: str, address: str, noted: str) -> None:
    read = lib.settings.read_address(typed)
    assert str(lib.connection.address_of(lib.settings.Settings(url=typed))) == address
    assert noted in read.note and bool(noted) == bool(read.note)
    assert lib.settings.read_address(read.url) == (read.url, ""), "what was corrected stays as it is"


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("", "no_address"),
        ("ftp://a.example", "bad_address"),
        ("http://gpu.example", "insecure_http"),
    ],
)
def test_bad_addresses_are_said_in_words_that_can_be_followed_here(lib: Any, typed: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        lib.connection.address_of(lib.settings.Settings(url=typed))
    assert caught.value.code == code and caught.value.remedy
    assert "--" not in str(caught.value) and "MEDSIGHT_" not in str(caught.value) and "secret" not in str(caught.value)


def test_what_was_meant_for_one_server_does_not_go_to_another(lib: Any) -> None:
    one = lib.settings.Settings(url="https://a.example", token=TOKEN, insecure_http=True)
    same = one.pointed_at("a.example:443/medsight")
    assert (same.token, same.insecure_http) == (TOKEN, True)
    for url in ("https://b.example", "https://a.example:8443", "http://a.example", ""):
        assert (one.pointed_at(url).token, one.pointed_at(url).insecure_http) == ("", False)


def write(edit: Any, text: str) -> None:
    """As a person: types, and leaves the field."""
    edit.setText(text)
    edit.editingFinished.emit()


def words(label: Any) -> str:
    """What stands on a label."""
    from PySide6 import QtGui

    document = QtGui.QTextDocument()
    text = label.text
    document.setHtml(text() if callable(text) else text)
    return " ".join(document.toPlainText().split())


@pytest.fixture
def page(lib: Any, tmp_path: Path) -> Iterator[Any]:
    """A page whose model on this computer is never started."""
    from PySide6 import QtWidgets

    store = stored(lib, tmp_path)
    store.save(lib.settings.Settings(folder=str(tmp_path / "backend")))
    parent = QtWidgets.QWidget()
    local = lib.localserver.LocalServer(parent, store)
    consents = lib.consent.Consents(store, lambda: local.origin)
    made = lib.settingspage.SettingsPage(lib.connection.Connection(store, consents, local))
    made.widget.show()
    made.store, made.consents, made.server = store, consents, local
    yield made
    made.close()
    local.close()
    lib._qt.dispose(made.widget)
    parent.deleteLater()
    lib.settle()


def test_the_page_shows_the_one_or_the_other(lib: Any, page: Any) -> None:
    assert page.local.widget.isVisible() and not page.url.isVisible()
    page.there.setChecked(True)
    assert page.store.settings.where == "server"
    assert not page.local.widget.isVisible() and page.url.isVisible()
    page.here.setChecked(True)
    assert page.store.settings.where == "here" and page.local.widget.isVisible()


def test_what_is_typed_is_kept_and_corrected(lib: Any, page: Any, tmp_path: Path) -> None:
    page.there.setChecked(True)
    write(page.url, " 0.0.0.0:8765 ")
    assert page.store.settings.url == "127.0.0.1:8765" == lib._qt.val(page.url.text)
    assert page.note.isVisible() and "0.0.0.0 is where a server listens" in words(page.note)
    write(page.token, f" {TOKEN} ")
    assert page.store.settings.token == TOKEN and TOKEN not in kept(page.store, tmp_path)
    assert page.note.isVisible(), "still there to be read"
    page.keep.setChecked(True)
    assert TOKEN in kept(page.store, tmp_path)
    write(page.url, "https://b.example")
    assert page.store.settings.token == "" == lib._qt.val(page.token.text)
    assert "another server" in words(page.note) and TOKEN not in kept(page.store, tmp_path)
    write(page.url, "https://b.example/<img src=x>")
    assert "<img src=x" in words(page.note), "as words"
    assert "is no address" in words(page.note)


def test_http_to_another_computer_takes_a_tick(lib: Any, page: Any) -> None:
    page.there.setChecked(True)
    write(page.url, "https://gpu.example")
    assert not page.insecure.isVisible()
    write(page.url, "http://gpu.example")
    assert page.insecure.isVisible() and not page.insecure.isChecked()
    assert "unencrypted" in words(page.note)
    with pytest.raises(InputError, match="unencrypted"):
        lib.connection.remote(page.store.settings)
    page.insecure.setChecked(True)
    assert page.store.settings.insecure_http and not page.note.isVisible()
    assert lib.connection.remote(page.store.settings).address.origin == "http://gpu.example:80"
    write(page.url, "http://other.example")
    assert not page.store.settings.insecure_http, "the permission was for one server"


def looked(lib: Any, page: Any) -> str:
    """Tests the connection, and gives what is said."""
    page.button.click()
    assert "Looking" in words(page.result)
    until(lib, lambda: page._worker is None and not page._poll.running)
    return words(page.result)


def test_the_test_says_step_by_step_what_is_right(lib: Any, page: Any, fake: Fake) -> None:
    page.there.setChecked(True)
    assert not page.button.isEnabled()
    page.url.setText(fake.url)
    page.url.textEdited.emit(fake.url)
    assert page.button.isEnabled(), "while the field is still written in"
    said = looked(lib, page)
    assert page.store.settings.url == fake.url
    assert said.count(lib.settingspage.RIGHT) == 5 and lib.settingspage.WRONG not in said
    assert "The model is ready" in said and "fake on cpu" in said
    assert all(route.startswith("GET ") and not body for route, _, body in fake.seen), "no scan, no question"
    write(page.url, fake.url + "/elsewhere")
    assert not page.result.isVisible(), "what was found holds no longer"


@pytest.mark.parametrize(
    ("replies", "right", "wrong"),
    [
        ({"GET /readyz": problem(503, "device_failed")}, 4, "It is device_failed."),
        ({"GET /v1/medsight/info": says(200, INFO | {"protocol": 7})}, 3, "speaks protocol 7"),
        ({"GET /v1/medsight/info": says(401, b"", "text/plain")}, 2, "Type the token of this server in the settings"),
        ({"GET /v1/medsight/info": says(200, b"<html>Log in</html>", "text/html")}, 1, "a proxy, not MedSIGHT"),
        ({"GET /v1/medsight/info": says(504, b"<html>", "text/html")}, 1, "a proxy, not MedSIGHT"),
    ],
)
def test_the_test_names_what_is_wrong(
    lib: Any, page: Any, fake: Fake, replies: dict[str, Any], right: int, wrong: str
) -> None:
    fake.replies.update(replies)
    page.there.setChecked(True)
    write(page.url, fake.url)
    said = looked(lib, page)
    assert said.count(lib.settingspage.RIGHT) == right and said.count(lib.settingspage.WRONG) == 1 and wrong in said
    assert "--" not in said


def in_words(lib: Any, page: Any, wrong: str) -> None:
    assert wrong in looked(lib, page)


def test_the_test_names_a_wrong_host_a_wrong_port_and_a_wrong_address(lib: Any, page: Any) -> None:
    page.there.setChecked(True)
    for url, wrong in (
        ("https://nowhere.invalid", "There is no computer called nowhere.invalid"),
        ("http://127.0.0.1:9", "Nothing listens at port 9 of this computer. Check the port in the settings"),
        ("ftp://a.example", "ftp is not spoken here"),
    ):
        write(page.url, url)
        beating(lib, lambda wrong=wrong: in_words(lib, page, wrong))
    write(page.url, "https://a.example")
    write(page.ca, "/nowhere/ca.pem")
    assert "no certificate that could be trusted" in looked(lib, page)
    write(page.ca, "")
    write(page.token, "ä ö")
    assert "characters that no header can carry" in looked(lib, page)


def test_a_test_can_be_stopped_and_the_page_closed(lib: Any, tmp_path: Path) -> None:
    gate = threading.Event()

    def slow(settings: Any) -> Any:
        assert gate.wait(20)
        return lib.settingspage.Tested(checks=())

    connection = connected(lib, tmp_path, url="https://a.example")
    lines: dict[str, Any] = {"state": "stopped", "sentence": "", "busy": False, "installed": True, "fraction": None}
    for name, value in (lines | {"written": 0, "log": (), "on_change": lambda callback: None}).items():
        setattr(connection.local, name, value)
    page = lib.settingspage.SettingsPage(connection, test=slow)
    page.widget.show()
    page.button.click()
    assert lib._qt.val(page.button.text) == "Stop testing"
    page.button.click()
    assert lib._qt.val(page.button.text) == "Test connection" and not page.result.isVisible()
    page.button.click()
    page.close()
    gate.set()
    lib._qt.dispose(page.widget)
    lib.settle(50)


def test_consent_can_be_withdrawn_on_the_page(lib: Any, page: Any) -> None:
    page.there.setChecked(True)
    assert "Nothing is sent before you allow it" in words(page.consent)
    address = lib.connection.address_of(lib.settings.Settings(url="https://a.example"))
    page.consents.give(address)
    page.refresh()
    assert "https://a.example:443 Withdraw" in words(page.consent)
    page.consent.linkActivated.emit("revoke:https://a.example:443")
    assert not page.consents.allows(address) and "Withdraw" not in words(page.consent)


def test_what_a_server_says_is_never_markup(lib: Any, page: Any) -> None:
    bad = "<img src=x><script>"
    info = Info(version="1", protocol=1, model=bad, digest="d", device=bad, dtype="f")
    page.there.setChecked(True)
    page._tested = lib.settingspage.Tested(checks=(Check(step="host"),), info=info)
    page.refresh()
    assert bad in words(page.result)
