from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests

from medsight_core.client.address import Address
from medsight_core.client.dicomweb import Archive, Stored, store
from medsight_core.errors import InputError, MedSightError
from medsight_core.events import Progress
from medsight_core.imaging.dicom import read_dicom_series
from medsight_core.imaging.dicom_seg import write_dicom_seg
from medsight_core.regions import Span, VolumeRegion
from tests.client.archive import FakeArchive, basic, fake_archive
from tests.imaging.synthetic import write_series

ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real DICOM Segmentation."""
    folder = tmp_path_factory.mktemp("seg")
    series = write_series(folder / "series")
    uid = str(pydicom.dcmread(series.paths[0], stop_before_pixels=True).SeriesInstanceUID)
    volume = read_dicom_series(series.paths, uid)
    mask = np.zeros(volume.array.shape, dtype=bool)
    mask[1:3, 2:5, 3:6] = True
    region = VolumeRegion(
        code="[C0_16]", label="liver", span=Span(0, 0), score=0.9, mask=mask, frame=volume.require_frame()
    )
    path = write_dicom_seg([region], volume, folder / "seg.dcm", model_name="mini", model_digest="0123")
    assert path is not None
    return path


@pytest.fixture
def fake() -> Iterator[FakeArchive]:
    with fake_archive() as archive:
        yield archive


def at(url: str, **more: Any) -> Archive:
    return Archive(address=Address.parse(url), **more)


def failing(archive: Archive, *files: Path) -> MedSightError:
    with pytest.raises(MedSightError) as caught:
        store(archive, files)
    return caught.value


def test_files_arrive_as_they_are(fake: FakeArchive, segmentation: Path) -> None:
    told: list[Progress] = []
    stored = store(at(fake.url), [segmentation, segmentation], tell=told.append)
    wanted = pydicom.dcmread(segmentation)
    assert fake.paths == ["/dicom-web/studies"]
    assert [one.SOPInstanceUID for one in fake.stored] == [wanted.SOPInstanceUID] * 2
    assert all(one == wanted for one in fake.stored)
    assert stored == Stored(uids=(str(wanted.SOPInstanceUID),) * 2)
    assert fake.headers[0]["Accept"] == "application/dicom+json"
    assert int(fake.headers[0]["Content-Length"]) == told[-1].total > 2 * segmentation.stat().st_size
    assert "Authorization" not in fake.headers[0]
    assert [one.done for one in told] == sorted(one.done for one in told)


@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 2**18 + 1])
def test_a_file_of_any_size_arrives_whole(fake: FakeArchive, tmp_path: Path, size: int) -> None:
    content = b"\0" * 128 + b"DICM" + bytes(np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8))
    (tmp_path / "a.dcm").write_bytes(content)
    fake.answer = (200, "application/dicom+json", b"")
    assert store(at(fake.url), [tmp_path / "a.dcm"]) == Stored(uids=())
    assert fake.parts == [content]


def test_a_name_and_password_or_a_token_let_in(fake: FakeArchive, segmentation: Path) -> None:
    fake.wants = basic("me", "pass word ü")
    assert failing(at(fake.url), segmentation).code == "unauthorized"
    assert store(at(fake.url, user="me", secret="pass word ü"), [segmentation]).uids
    fake.wants = "Bearer abc"
    assert store(at(fake.url, secret="abc"), [segmentation]).uids
    assert failing(at(fake.url, secret="a b"), segmentation).code == "bad_token"


def test_only_a_certificate_that_is_trusted_is_spoken_to(segmentation: Path, tmp_path: Path) -> None:
    with fake_archive(tmp_path / "tls") as archive:
        assert failing(at(archive.url), segmentation).code == "tls_untrusted"
        assert archive.headers == [], "nothing was said to it"
        assert store(at(archive.url, ca=archive.certificate), [segmentation]).uids


def test_what_is_no_dicom_file_is_not_sent(fake: FakeArchive, segmentation: Path, tmp_path: Path) -> None:
    (tmp_path / "page.dcm").write_text("<html>" * 100)
    for bad in (tmp_path / "page.dcm", tmp_path / "absent.dcm", tmp_path):
        with pytest.raises(InputError, match=bad.name):
            store(at(fake.url), [segmentation, bad])
    assert fake.paths == []


def refusal(*reasons: int) -> bytes:
    items = [{"00081197": {"vr": "US", "Value": [reason]}} for reason in reasons]
    return json.dumps({"00081198": {"vr": "SQ", "Value": items}}).encode()


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((409, "application/dicom+json", refusal(0x0122)), "not_stored", "this kind of object is not stored there"),
        ((202, "application/dicom+json", refusal(0xA700)), "not_stored", "no room left"),
        ((200, "application/dicom+json", refusal(0xA901)), "not_stored", "does not fit"),
        ((409, "application/dicom+json", refusal(0xC123)), "not_stored", "cannot be understood"),
        ((409, "application/dicom+json", refusal(0x1234)), "not_stored", "number 1234"),
        ((409, "application/dicom+json", b'{"00081198":{"Value":[{}]}}'), "not_stored", "gave no reason"),
        ((409, "application/dicom+json", b"{]"), "not_stored", "refused it"),
        ((400, "text/plain", b"what?"), "not_stored", "did not understand"),
        ((403, "text/plain", b""), "forbidden", "lets nobody in"),
        ((404, "text/plain", b""), "no_dicomweb", "no DICOMweb at this address"),
        ((413, "text/plain", b""), "too_large", "as large"),
        ((503, "text/plain", b""), "busy", "busy"),
        ((500, "text/plain", b""), "no_dicomweb", "500"),
        ((502, "text/html", b"<h1>Bad gateway</h1>"), "no_dicomweb", "502"),
        ((200, "text/html", b"<form>Log in</form>"), "no_dicomweb", "web page"),
        ((302, "text/plain", b""), "redirected", "another address"),
    ],
)
def test_each_refusal_has_a_sentence(
    fake: FakeArchive, segmentation: Path, answer: tuple[int, str, bytes], code: str, words: str
) -> None:
    fake.answer = answer
    error = failing(at(fake.url), segmentation)
    assert error.code == code
    assert words in error.sentence and error.remedy
    assert "<" not in str(error)


def test_a_warning_is_no_failure(fake: FakeArchive, segmentation: Path) -> None:
    fake.answer = (202, "application/dicom+json", b'{"00081199":{"Value":[{"00081155":{"Value":["1.2"]}}]}}')
    assert store(at(fake.url), [segmentation]) == Stored(uids=("1.2",), warning="The archive stored it with a warning.")


def test_an_archive_that_is_not_there_is_said_so(segmentation: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert failing(at(f"http://127.0.0.1:{taken.getsockname()[1]}"), segmentation).code == "connection_refused"


def test_it_can_be_stopped(fake: FakeArchive, segmentation: Path) -> None:
    fake.slowly = threading.Event()
    cancel = threading.Event()
    threading.Timer(0.3, cancel.set).start()
    began = time.monotonic()
    with pytest.raises(MedSightError) as caught:
        store(at(fake.url), [segmentation], cancel=cancel)
    fake.slowly.set()
    assert caught.value.code == "stopped"
    assert time.monotonic() - began < 5


def test_http_to_another_computer_is_refused() -> None:
    with pytest.raises(InputError, match="unencrypted"):
        Address.parse("http://pacs.example/dicom-web")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real archive, reachable from this computer alone."""
    program = shutil.which("Orthanc") or shutil.which("orthanc")
    if program is None or not ORTHANC_PLUGIN.is_file():
        pytest.skip("Orthanc and its DICOMweb plugin are not installed")
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "orthanc.json").write_text(
        json.dumps(
            {
                "StorageDirectory": str(folder / "db"),
                "IndexDirectory": str(folder / "db"),
                "Plugins": [str(ORTHANC_PLUGIN)],
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
                "HttpPort": port,
                "DicomServerEnabled": False,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": True,
                "RegisteredUsers": {"me": "secret"},
            }
        )
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    root = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if requests.get(f"{root}/system", auth=("me", "secret"), timeout=1).ok:
                    break
            except requests.RequestException:
                time.sleep(0.1)
            assert process.poll() is None, (folder / "log").read_text()
        else:
            pytest.fail("Orthanc does not answer")
        yield root
    finally:
        process.terminate()
        process.wait(20)


def test_a_real_archive_stores_it_and_gives_it_back(orthanc: str, segmentation: Path) -> None:
    url = f"{orthanc}/dicom-web"
    assert failing(at(url), segmentation).code == "unauthorized"
    assert failing(at(url, user="me", secret="wrong"), segmentation).code == "unauthorized"
    wanted = pydicom.dcmread(segmentation)
    stored = store(at(url, user="me", secret="secret"), [segmentation])
    assert stored.uids == (str(wanted.SOPInstanceUID),)
    found = requests.get(
        f"{url}/instances", params={"Modality": "SEG"}, auth=("me", "secret"), timeout=20,
        headers={"Accept": "application/dicom+json"},
    ).json()  # fmt: skip
    assert [one["00080018"]["Value"][0] for one in found] == [wanted.SOPInstanceUID]
    (number,) = requests.get(f"{orthanc}/instances", auth=("me", "secret"), timeout=20).json()
    back = requests.get(f"{orthanc}/instances/{number}/file", auth=("me", "secret"), timeout=20)
    assert back.content == segmentation.read_bytes()
    again = store(at(url, user="me", secret="secret"), [segmentation])
    assert again.uids == stored.uids


def test_a_wrong_path_of_a_real_archive_is_said_so(orthanc: str, segmentation: Path, tmp_path: Path) -> None:
    assert failing(at(orthanc, user="me", secret="secret"), segmentation).code == "no_dicomweb"
    (tmp_path / "cut.dcm").write_bytes(segmentation.read_bytes()[:700])
    assert failing(at(f"{orthanc}/dicom-web", user="me", secret="secret"), tmp_path / "cut.dcm").code == "not_stored"
