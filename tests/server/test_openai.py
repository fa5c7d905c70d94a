"""The official OpenAI client against a real server: whatever talks to OpenAI can talk to MedSIGHT."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from medsight_core.events import Done, RegionFound, TextDelta
from medsight_core.imaging.photograph import read_photograph
from medsight_core.inference.engine import Engine
from medsight_core.inference.scheduler import Scheduler
from medsight_core.regions import Question
from medsight_core.server.pictures import Pictures
from medsight_core.server.store import VolumeStore
from medsight_core.wire.events import EventReader
from tests.inference.tiny import stack
from tests.server.running import (
    PATIENCE,
    Running,
    asking,
    data_url,
    get,
    paced_engine,
    picture,
    post,
    serving,
    until,
)

TOKEN = "a-token-of-more-than-sixteen-characters"


def client_of(url: str, token: str = "none") -> openai.OpenAI:
    """The official client, which tries only once, so that an error is what the server said."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=PATIENCE)


@pytest.fixture
def client(running: Running, monkeypatch: pytest.MonkeyPatch) -> openai.OpenAI:
    """The official client of the shared server."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return client_of(running.url)


def test_the_model_is_listed_and_found_by_name(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-4")
    assert refused.value.code == "model_not_found"


def test_a_chat_with_a_picture_gives_the_engines_own_answer(
    client: openai.OpenAI, engine: Engine, tmp_path: Path
) -> None:
    reply = client.chat.completions.create(model="tiny", messages=asking())
    volume, _ = Pictures(VolumeStore(tmp_path)).open(data_url(picture()))
    local = engine.answer(Question(text="What is this?", volume=volume, slice_index=0))

    assert reply.choices[0].message.content == local.text
    assert reply.choices[0].message.role == "assistant"
    said = EventReader(volume).answer_from_json(reply.medsight["answer"])
    assert said.raw == local.raw
    assert [region.code for region in said.regions] == [region.code for region in local.regions]
    for ours, theirs in zip(said.regions, local.regions, strict=True):
        np.testing.assert_array_equal(ours.mask, theirs.mask)


def test_a_stream_brings_words_and_regions_as_they_are_made(client: openai.OpenAI, tmp_path: Path) -> None:
    whole = client.chat.completions.create(model="tiny", messages=asking())
    stream = client.chat.completions.create(
        model="tiny", messages=asking(), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert words == whole.choices[0].message.content
    assert len(chunks) > 5

    volume, _ = Pictures(VolumeStore(tmp_path)).open(data_url(picture()))
    reader = EventReader(volume)
    events = [reader.from_json(chunk.medsight) for chunk in chunks if chunk.choices]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == words
    assert isinstance(events[-1], Done)
    found = [event.region for event in events if isinstance(event, RegionFound)]
    assert found, "the tiny model of these tests writes region codes"
    assert [region.code for region in events[-1].answer.regions] == [region.code for region in found]
    first = next(number for number, event in enumerate(events) if isinstance(event, RegionFound))
    assert any(isinstance(event, TextDelta) for event in events[first:]), "a region comes before the text is over"

    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-1].usage == whole.usage
    assert whole.usage.prompt_tokens > 0 < whole.usage.completion_tokens


def test_an_answer_that_is_cut_off_says_so(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="tiny", messages=asking(), max_tokens=3)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 3
    assert any("cut off after 3 tokens" in said for said in reply.medsight["answer"]["warnings"])


def test_more_tokens_than_the_model_writes_are_no_error(client: openai.OpenAI) -> None:
    assert client.chat.completions.create(model="tiny", messages=asking(), max_completion_tokens=100_000).choices


def test_earlier_messages_are_the_history(client: openai.OpenAI, engine: Engine, tmp_path: Path) -> None:
    messages = asking()
    first = client.chat.completions.create(model="tiny", messages=messages)
    raw = first.medsight["answer"]["raw"]
    messages += [{"role": "assistant", "content": raw}, {"role": "user", "content": "Is there more?"}]
    second = client.chat.completions.create(model="tiny", messages=messages)

    volume, _ = Pictures(VolumeStore(tmp_path)).open(data_url(picture()))
    question = Question(text="Is there more?", volume=volume, slice_index=0, history=(("What is this?", raw),))
    assert second.medsight["answer"]["raw"] == engine.answer(question).raw
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_a_picture_that_comes_again_is_not_looked_at_again(client: openai.OpenAI, engine: Engine) -> None:
    address = data_url(picture(seed=77))
    client.chat.completions.create(model="tiny", messages=asking(url=address))
    before = engine.features.encoded
    client.chat.completions.create(model="tiny", messages=asking("And what is that?", url=address))
    assert engine.features.encoded == before


def test_a_system_message_is_not_read_and_that_is_said(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(model="tiny", messages=asking())
    told = client.chat.completions.create(
        model="tiny", messages=[{"role": "system", "content": "You are a pirate."}, *asking()]
    )
    assert told.choices[0].message.content == plain.choices[0].message.content
    assert any("system message" in said for said in told.medsight["answer"]["warnings"])


def test_a_volume_is_asked_about_by_its_hash(client: openai.OpenAI, running: Running, engine: Engine) -> None:
    volume = stack(np.arange(5 * 40 * 48, dtype=np.int16).reshape(5, 40, 48) % 777)
    digest = send(running.url, volume)
    messages: Any = [{"role": "user", "content": "What is this?"}]
    reply = client.chat.completions.create(
        model="tiny", messages=messages, extra_body={"medsight": {"volume": digest, "slice": 3}}
    )
    assert (
        reply.medsight["answer"]["raw"]
        == engine.answer(Question(text="What is this?", volume=volume, slice_index=3)).raw
    )


def send(url: str, volume: Any) -> str:
    """Uploads a volume; returns its hash."""
    import httpx

    from medsight_core.wire.codecs import usable_codecs
    from medsight_core.wire.volumes import chunks_of, digest_of

    digest = digest_of(volume)
    body = b"".join(chunks_of(volume, codec=usable_codecs()[0]))
    sent = httpx.put(f"{url}/v1/volumes/{digest}", content=body, trust_env=False, timeout=PATIENCE)
    assert sent.status_code in (200, 201), sent.text
    return digest


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://169.254.169.254/latest/meta-data", "not_fetched"),
        ("https://example.org/a.png", "not_fetched"),
        ("file:///etc/hostname", "not_fetched"),
        ("data:image/png;base64,@@@@", "bad_picture"),
        ("data:text/html;base64,PGI+", "bad_picture"),
        ("data:application/dicom;base64,AAAA", "bad_picture"),
        ("data:image/png;base64,AAAA", "pixels_unreadable"),
        ("", "not_fetched"),
    ],
)
def test_a_picture_that_is_none_is_refused(client: openai.OpenAI, url: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=asking(url=url or "x"))
    assert refused.value.code == code


def test_a_picture_that_unpacks_to_gigabytes_is_refused(client: openai.OpenAI) -> None:
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="tiny", messages=asking(url=data_url(bomb)))
    assert (refused.value.status_code, refused.value.code) == (413, "too_large")


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([{"role": "user", "content": "What is this?"}], "no_picture"),
        ([{"role": "assistant", "content": "Hello."}], "no_question"),
        (asking(""), "empty_question"),
        ([{"role": "user", "content": [*asking()[0]["content"], asking()[0]["content"][1]]}], "several_pictures"),
    ],
)
def test_messages_that_ask_nothing_clear_are_refused(client: openai.OpenAI, messages: Any, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=messages)
    assert refused.value.code == code


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-4", messages=asking())
    assert refused.value.code == "model_not_found"
    assert "does not have that model. It has: tiny." in refused.value.message, "chat programs show no more than that"


def test_several_answers_at_once_are_not_made(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(model="tiny", messages=asking(), n=2)
    assert refused.value.code == "bad_request"


def test_an_unknown_volume_is_a_conflict_that_a_client_heals(client: openai.OpenAI) -> None:
    with pytest.raises(openai.ConflictError) as refused:
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "What is this?"}],
            extra_body={"medsight": {"volume": "0" * 64}},
        )
    assert refused.value.code == "volume_unknown"


def test_without_the_token_nobody_is_let_in(backend: Scheduler, tmp_path: Path) -> None:
    with serving(backend, tmp_path, token=TOKEN) as server:
        with pytest.raises(openai.AuthenticationError) as refused:
            client_of(server.url, "a-wrong-token-of-sixteen").models.list()
        assert refused.value.code == "unauthorized"
        assert client_of(server.url, TOKEN).models.list().data
        for path in ("/v1/models", "/v1/medsight/info", "/metrics", "/openapi.json", "/info/", "/nothing"):
            assert get(server.url, path).status_code == 401, path
        assert get(server.url, "/healthz").status_code == 200
        assert get(server.url, "/readyz").status_code == 200
        basic = {"Authorization": f"Basic {TOKEN}"}
        assert get(server.url, "/v1/models", headers=basic).status_code == 401


def test_a_body_that_is_too_large_is_refused_by_name_however_it_is_sent(backend: Scheduler, tmp_path: Path) -> None:
    with serving(backend, tmp_path, body_bytes=20_000) as server:
        large = asking(url=data_url(picture(200, 300)))
        with pytest.raises(openai.APIStatusError) as refused:
            client_of(server.url).chat.completions.create(model="tiny", messages=large)
        assert (refused.value.status_code, refused.value.code) == (413, "too_large")

        body = json.dumps({"messages": large}).encode()
        pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
        chunked = post(server.url, "/v1/chat/completions", content=pieces, headers={"Content-Type": "application/json"})
        assert chunked.status_code == 413
        assert chunked.json()["code"] == "too_large"
        huge = post(server.url, "/v1/chat/completions", content=b" " * 30_000_000)
        assert huge.status_code == 413
        assert huge.headers["content-type"] == "application/problem+json"


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Closed, so that the model does not get on; opened at the end."""
    gate = threading.Event()
    yield gate
    gate.set()


def words_of(engine: Engine) -> str:
    """What the model says when nobody but it is asked."""
    volume = read_photograph(Path("picture"), content=io.BytesIO(picture()))
    return engine.answer(Question(text="What is this?", volume=volume, slice_index=0)).text


def test_a_full_queue_says_when_to_come_again(
    checkpoint: Path, engine: Engine, tmp_path: Path, gate: threading.Event
) -> None:
    backend = Scheduler(paced_engine(checkpoint, gate=gate), waiting=1, together=1)
    replies: list[Any] = []
    with serving(backend, tmp_path) as server:

        def ask() -> None:
            replies.append(client_of(server.url).chat.completions.create(model="tiny", messages=asking()))

        threads = []
        for count in ("running", "waiting"):
            threads.append(threading.Thread(target=ask))
            threads[-1].start()
            until(lambda count=count: getattr(backend, count) == 1)
        with pytest.raises(openai.RateLimitError) as refused:
            client_of(server.url).chat.completions.create(model="tiny", messages=asking())
        assert refused.value.code == "busy"
        assert int(refused.value.response.headers["retry-after"]) >= 1
        gate.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert [reply.choices[0].message.content for reply in replies] == [words_of(engine)] * 2
    backend.close()


def test_no_more_answers_at_once_than_the_server_takes(checkpoint: Path, tmp_path: Path, gate: threading.Event) -> None:
    backend = Scheduler(paced_engine(checkpoint, gate=gate))
    with serving(backend, tmp_path, answers=1) as server:
        thread = threading.Thread(
            target=post, args=(server.url, "/v1/chat/completions"), kwargs={"json": {"messages": asking()}}
        )
        thread.start()
        until(lambda: server.work.under_way == 1)
        refused = post(server.url, "/v1/chat/completions", json={"messages": asking()})
        assert (refused.status_code, refused.json()["code"]) == (429, "busy")
        gate.set()
        thread.join(PATIENCE)
    backend.close()


def test_too_little_memory_is_507_and_the_server_lives(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    engine = paced_engine(checkpoint)
    vision = engine.model.model.vision
    full = [True]

    class FullDevice(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> Any:
            if full:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return vision(pixels)

    monkeypatch.setattr(engine.model.model, "vision", FullDevice())
    backend = Scheduler(engine)
    with serving(backend, tmp_path) as server:
        client = client_of(server.url)
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model="tiny", messages=asking())
        assert (refused.value.status_code, refused.value.code) == (507, "out_of_memory")
        with pytest.raises(openai.APIError) as broken:
            list(client.chat.completions.create(model="tiny", messages=asking(), stream=True))
        assert broken.value.code == "out_of_memory"
        assert "memory" in broken.value.message
        full.clear()
        assert client.chat.completions.create(model="tiny", messages=asking()).choices
        assert get(server.url, "/readyz").status_code == 200
    backend.close()
