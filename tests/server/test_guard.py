"""Who is let in, and what every response has."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from medsight_core.errors import InputError
from medsight_core.inference.scheduler import Scheduler
from medsight_core.server.config import ServerConfig
from tests.server.running import Running, asking, figure, get, post, serving, until

TOKEN = "a-token-of-more-than-sixteen-characters"
FILES = {"certificate": Path("server.pem"), "key": Path("server.key")}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"host": "0.0.0.0"}, "token_needed"),
        ({"host": "::"}, "token_needed"),
        ({"host": "server.hospital.example", **FILES}, "token_needed"),
        ({"behind_proxy": True}, "token_needed"),
        ({"host": "0.0.0.0", "token": TOKEN}, "tls_needed"),
        ({"host": "192.0.2.7", "token": "short", **FILES}, "weak_token"),
        ({"behind_proxy": True, "token": "short"}, "weak_token"),
        ({"token": ""}, "bad_token"),
        ({"token": "two words of a token"}, "bad_token"),
        ({"token": "tökentökentökentöken"}, "bad_token"),
        ({"certificate": Path("server.pem")}, "tls_incomplete"),
        ({"key": Path("server.key")}, "tls_incomplete"),
        ({"origins": ("*",)}, "bad_origin"),
        ({"origins": ("https://viewer.example/path",)}, "bad_origin"),
        ({"port": 70_000}, "bad_port"),
    ],
)
def test_what_would_be_open_to_strangers_does_not_start(options: dict[str, object], code: str) -> None:
    with pytest.raises(InputError) as refused:
        ServerConfig(**options)  # type: ignore[arg-type]
    assert refused.value.code == code
    assert refused.value.remedy or code == "bad_port"
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"host": "localhost"},
        {"host": "::1"},
        {"host": "127.0.0.2"},
        {"token": "short"},
        {"host": "0.0.0.0", "token": TOKEN, **FILES},
        {"host": "0.0.0.0", "token": TOKEN, "behind_proxy": True},
    ],
)
def test_what_is_safe_starts(options: dict[str, object]) -> None:
    config = ServerConfig(**options)  # type: ignore[arg-type]
    assert config.local == (config.host != "0.0.0.0")
    assert TOKEN not in repr(config)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "[", "0.0.0.0"])
def test_a_name_that_resolves_to_this_computer_is_not_this_computer(running: Running, host: str) -> None:
    refused = get(running.url, "/v1/models", headers={"Host": host})
    if host:  # h11 itself refuses an empty one
        assert (refused.status_code, refused.json()["code"]) == (403, "wrong_host")
    assert refused.status_code in (400, 403)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8765", "127.1.2.3"])
def test_this_computer_has_many_names(running: Running, host: str) -> None:
    assert get(running.url, "/v1/models", headers={"Host": host}).status_code == 200


def test_behind_a_proxy_the_host_is_the_proxys(backend: Scheduler, tmp_path: Path) -> None:
    config = ServerConfig(port=0, token=TOKEN, behind_proxy=True)
    with serving(backend, tmp_path, config) as server:
        headers = {"Host": "ai.hospital.example", "Authorization": f"Bearer {TOKEN}"}
        assert get(server.url, "/v1/models", headers=headers).status_code == 200


def test_a_web_page_from_elsewhere_is_not_answered(running: Running) -> None:
    for origin in ("https://evil.example", "null", running.url):
        refused = get(running.url, "/v1/models", headers={"Origin": origin})
        assert (refused.status_code, refused.json()["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in refused.headers


def test_a_web_page_that_may_ask_asks_with_the_token(backend: Scheduler, tmp_path: Path) -> None:
    page = "https://viewer.example"
    with serving(backend, tmp_path, token=TOKEN, origins=(page,)) as server:
        import httpx

        preflight = httpx.options(
            f"{server.url}/v1/chat/completions",
            headers={
                "Origin": page,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type",
            },
            trust_env=False,
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == page
        assert "access-control-allow-credentials" not in preflight.headers
        headers = {"Origin": page, "Authorization": f"Bearer {TOKEN}"}
        answered = get(server.url, "/v1/models", headers=headers)
        assert (answered.status_code, answered.headers["access-control-allow-origin"]) == (200, page)
        refused = get(server.url, "/v1/models", headers={"Origin": page})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, page)
        other = get(server.url, "/v1/models", headers={**headers, "Origin": "https://evil.example"})
        assert other.status_code == 403


def test_another_protocol_is_another_version(running: Running) -> None:
    assert get(running.url, "/v1/models", headers={"MedSIGHT-Protocol": "1"}).status_code == 200
    for said in ("2", "", "1.0", "one"):
        refused = get(running.url, "/v1/models", headers={"MedSIGHT-Protocol": said})
        assert (refused.status_code, refused.json()["code"]) == (426, "wrong_version")


def test_what_it_is_comes_with_version_digest_abilities_and_limits(running: Running, backend: Scheduler) -> None:
    info = get(running.url, "/v1/medsight/info").json()
    said = backend.info()
    assert (info["protocol"], info["model"], info["digest"]) == (1, "tiny", said.digest)
    assert {"ask", "segment", "volumes"} <= set(info["capabilities"])
    assert info["limits"]["max_new_tokens"] == said.limits["max_new_tokens"]
    assert info["limits"]["body_bytes"] > 0 < info["limits"]["volume_bytes"]


def test_every_error_is_a_problem(running: Running) -> None:
    replies = [
        (get(running.url, "/nothing/here"), 404, "not_found"),
        (get(running.url, "/v1/chat/completions"), 405, "method_not_allowed"),
        (post(running.url, "/v1/chat/completions", content=b"{"), 422, "bad_request"),
        (_json(running, b'{"messages": '), 400, "bad_json"),
        (_json(running, b"[" * 100_000), 400, "bad_request"),
        (_json(running, b'{"messages": "\xff"}'), 400, "bad_request"),
        (_json(running, b"9" * 5000), 400, "bad_request"),
        (_json(running, b"{}"), 422, "bad_request"),
        (_json(running, b'{"messages": [], "max_tokens": NaN}'), 422, "bad_request"),
        (_json(running, b'{"messages": [{"role": "pirate", "content": "x"}]}'), 422, "bad_request"),
        (_json(running, b'{"messages": [{"role": "user", "content": "\\ud800"}]}'), 422, "bad_request"),
        (
            _json(running, b'{"messages": ' + b'[{"role":"user"},' * 1 + b'{"role":"user"}' + b"]" + b"}"),
            400,
            "no_picture",
        ),
    ]
    for reply, status, code in replies:
        assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
        assert reply.headers["content-type"] == "application/problem+json"
        problem = reply.json()
        assert problem.keys() == {"type", "title", "status", "code", "detail", "remedy", "request_id", "error"}
        assert problem["status"] == status
        assert problem["request_id"] == reply.headers["x-request-id"]
        assert problem["detail"].endswith(".")
    assert "GET" not in get(running.url, "/v1/chat/completions").headers["allow"]


def _json(running: Running, body: bytes) -> object:
    return post(running.url, "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})


def test_an_error_does_not_repeat_what_was_sent(running: Running) -> None:
    planted = "Qzxcanary^Anna"
    bodies = [
        {"messages": [{"role": planted, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": planted}]}]},
        {"messages": asking(), "medsight": {planted: 1}},
        {"messages": asking(), "medsight": {"volume": planted}},
        {"messages": asking(), "model": planted},
        {"messages": asking(url=f"https://{planted}.example/{planted}")},
        {"messages": asking(url=f"data:image/png;base64,{planted}")},
    ]
    for body in bodies:
        refused = post(running.url, f"/v1/chat/completions?name={planted}", json=body)
        assert 400 <= refused.status_code < 500
        assert "qzx" not in (refused.text + str(refused.headers)).lower(), body
    assert "qzx" not in get(running.url, f"/{planted}").text.lower()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the server writes."""
    caplog.set_level(logging.INFO, logger="medsight")
    caplog.set_level(logging.INFO, logger="uvicorn")
    yield caplog


def test_the_log_says_route_status_and_tokens_and_nothing_of_the_content(
    running: Running, log: pytest.LogCaptureFixture
) -> None:
    planted = "Qzxcanary"
    reply = post(
        running.url,
        f"/v1/chat/completions?patient={planted}",
        json={"messages": asking(f"Is {planted} ill?"), "user": planted},
        headers={"X-Patient": planted, "User-Agent": planted},
    )
    get(running.url, f"/v1/models/{planted}")
    last = get(running.url, f"/{planted}/x")
    assert reply.status_code == 200
    until(lambda: f"request={last.headers['x-request-id']}" in log.text)
    assert f"request={reply.headers['x-request-id']} POST /v1/chat/completions 200" in log.text
    assert "GET /v1/models/{name} 404" in log.text
    assert "GET unmatched 404" in log.text
    assert "tokens=" in log.text
    assert planted not in log.text
    assert planted not in get(running.url, "/metrics").text


def test_figures_count_requests_tokens_and_time(running: Running) -> None:
    name = 'medsight_requests_total{method="POST",route="/v1/chat/completions",status="200"}'
    before, tokens = figure(running.url, name), figure(running.url, 'medsight_tokens_total{kind="completion"}')
    firsts = figure(running.url, "medsight_first_text_seconds_count")
    assert post(running.url, "/v1/chat/completions", json={"messages": asking()}).status_code == 200
    assert figure(running.url, name) == before + 1
    assert figure(running.url, 'medsight_tokens_total{kind="completion"}') > tokens
    assert figure(running.url, "medsight_first_text_seconds_count") == firsts + 1
    assert figure(running.url, "medsight_model_waiting") == 0


def test_two_applications_in_one_process_count_apart(backend: Scheduler, running: Running, tmp_path: Path) -> None:
    get(running.url, "/healthz")
    with serving(backend, tmp_path) as other:
        assert figure(other.url, 'medsight_requests_total{method="GET",route="/healthz"') == 0
        assert figure(running.url, 'medsight_requests_total{method="GET",route="/healthz"') > 0
