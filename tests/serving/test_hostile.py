"""Whatever is sent: a refusal in OpenAI's form, never a mistake of the server, and never a control id out of text."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from servers import Running, post, running

from glm_lightning.serving.guards import Keys

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SOUND: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
JSON = st.recursive(
    SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=6), each, max_size=3)
)
CONTENTS = st.text(max_size=20) | st.lists(st.sampled_from(["<|user|>", "</s>", "[gMASK]", "\ud800", "\0"])).map(
    "".join
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "x"]), "content": CONTENTS},
        optional={"tool_calls": JSON, "reasoning_content": JSON, "tool_call_id": JSON, "name": JSON, "loss": JSON},
    ),
    max_size=3,
)
KEYS = {
    "model": st.just("demo") | JSON,
    "messages": MESSAGES | JSON,
    "prompt": CONTENTS | st.lists(st.integers(-1, 5000), max_size=4) | JSON,
    "stream": st.booleans() | JSON,
    "tools": st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": JSON}), max_size=2) | JSON,
}
OTHERS = (
    *("temperature", "top_p", "n", "seed", "stop", "frequency_penalty", "presence_penalty", "logit_bias", "surplus"),
    *("logprobs", "top_logprobs", "tool_choice", "response_format", "thinking", "chat_template_kwargs", "echo"),
    *("stream_options", "user", "metadata", "best_of", "max_completion_tokens", "reasoning_effort"),
)
BODIES = st.fixed_dictionaries({"max_tokens": st.just(2)}, optional={**KEYS, **dict.fromkeys(OTHERS, JSON)}) | JSON


def assert_told(status: int, body: bytes) -> None:
    """Either an answer, or a refusal in OpenAI's form."""
    assert status < 500, body
    if status >= 400:
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]


def test_a_missing_header_is_named(server: Running) -> None:
    """As of curl without --json, and of forms on other pages."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    status, _, body = post(f"{server.url}{CHAT}", json.dumps(SOUND).encode(), **headers)
    assert status == 400
    assert "Content-Type: application/json" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(body=BODIES)
@example(body={**SOUND, "stop": ["a"] * 17})
@example(body={**SOUND, "logit_bias": {"999999": 1}})
@example(body={**SOUND, "logit_bias": {"1" * 400: 1}})
@example(body={**SOUND, "temperature": 1e-300})
@example(body={**SOUND, "seed": 1 << 63})
@example(body={**SOUND, "messages": [{"role": "user", "content": "\ud800"}]})
@example(
    body={
        **SOUND,
        "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[" * 9999}}]}],
    }
)
def test_any_body(server: Running, path: str, body: Any) -> None:
    status, _, answer = post(server.url + path, json.dumps(body).encode())
    assert_told(status, answer)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/models", "/", "/nothing", "/v1/models/%2e%2e/%2e%2e"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}',
        b'{"messages": ' + b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"temperature": 1' + b"0" * 5000 + b"}",
        b"NaN",
        b'"\\ud800"',
        b"{}" + b" " * (5 << 20),
    ],
    ids=["empty", "torn", "utf16", "utf8", "deep", "deeper", "long", "nan", "half", "large"],
)
def test_bodies_that_are_none(server: Running, path: str, body: bytes) -> None:
    status, _, answer = post(server.url + path, body)
    assert status in (400, 404, 405, 413)
    assert_told(status, answer)


def test_what_is_no_json_by_its_header(server: Running) -> None:
    status, _, answer = post(server.url + CHAT, json.dumps(SOUND).encode(), **{"Content-Type": "text/plain"})
    assert status == 400  # a form of another page can send this without asking
    assert_told(status, answer)


def test_the_description_of_the_interface_is_true(server: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")

    seen = set()
    for operation in schema.get_all_operations():

        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy())
        def conforms(case) -> None:
            if isinstance(case.body, dict):
                case.body["max_tokens"] = 2
            answer = case.call(timeout=60)
            assert_told(answer.status_code, answer.content)
            seen.add((case.path, answer.status_code))

        conforms()
    assert {(CHAT, 400), (COMPLETIONS, 400), ("/v1/models", 200), ("/health", 200), ("/metrics", 200)} <= seen


def raw(server: Running, *parts: bytes, pause: float = 0.0) -> bytes:
    """What a socket hears that sends these parts."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        heard = b""
        while part := connection.recv(1 << 16):
            heard += part
        return heard


HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
)


@pytest.fixture
def hasty(monkeypatch) -> None:
    monkeypatch.setattr("glm_lightning.serving.guards.SECONDS", 0.3)


@pytest.mark.usefixtures("hasty")
def test_a_length_that_is_a_lie(server: Running) -> None:
    for length in (b"99999999999999999999999", b"-1", b"x", b"5000000"):
        heard = raw(server, HEAD + b"Content-Length: " + length + b"\r\n\r\n{}")
        assert heard.startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))


@pytest.mark.usefixtures("hasty")
def test_a_body_without_an_end(server: Running) -> None:
    chunk = b"10000\r\n" + b" " * (1 << 16) + b"\r\n"
    heard = raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 65)
    assert heard.startswith(b"HTTP/1.1 413")


@pytest.mark.usefixtures("hasty")
def test_a_client_that_sends_slowly(server: Running) -> None:
    assert raw(server, HEAD + b"Content-Length: 50\r\n\r\n{", pause=0.1).startswith(b"HTTP/1.1 408")
    assert raw(server, HEAD + b"Content-Length: 2\r\n\r\n", b"{", b"}", pause=0.05).startswith(b"HTTP/1.1 400")


def test_a_client_that_does_not_read(server: Running) -> None:
    body = json.dumps({**SOUND, "stream": True, "max_tokens": 900, "n": 8, "temperature": 2}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        while not server.engine.num_running:
            time.sleep(0.01)
        status, _, answer = post(server.url + CHAT, json.dumps(SOUND).encode())
        assert (status, json.loads(answer)["usage"]["completion_tokens"]) == (200, 2)
    deadline = time.monotonic() + 60
    while server.engine.num_running:
        assert time.monotonic() < deadline
        time.sleep(0.02)


KEY = "a-key-of-this-test"


def test_keys(demo, caplog) -> None:
    body = json.dumps(SOUND).encode()
    with running(demo, keys=(KEY, "another")) as server:
        for wrong in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {KEY}"}, {"Authorization": KEY},
                      {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Bearer {KEY[:-1]}"}):  # fmt: skip
            for path in (CHAT, COMPLETIONS, "/v1/models", "/metrics", "/openapi.json", "/nothing"):
                status, headers, answer = post(server.url + path, body, **wrong)
                assert status == 401
                assert headers["www-authenticate"] == "Bearer"
                assert json.loads(answer)["error"]["code"] == "invalid_api_key"
        for right in (KEY, "another"):
            assert post(server.url + CHAT, body, Authorization=f"Bearer {right}")[0] == 200
            assert post(server.url + CHAT, body, Authorization=f"bearer  {right} ")[0] == 200
        assert server.client.models.list().data
    assert KEY not in caplog.text


def test_all_keys_are_compared(monkeypatch) -> None:
    """The time must not tell which key a guess is near to."""
    compared = []
    monkeypatch.setattr(
        "glm_lightning.serving.guards.hmac.compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b
    )
    assert Keys(["a", "b", "c"]).allow("Bearer a")
    assert compared == [(32, 32)] * 3


def test_names_of_the_server(demo) -> None:
    """A page elsewhere cannot read answers by letting its own name point here."""
    with running(demo, hosts=frozenset({"localhost", "127.0.0.1", "::1"})) as server:
        for host, status in (("evil.example", 421), ("127.0.0.1:1", 200), ("localhost", 200), ("[::1]:80", 200)):
            heard = raw(server, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert heard.startswith(f"HTTP/1.1 {status}".encode()), heard


@pytest.mark.parametrize("origins", [(), ("https://a.example",)])
def test_other_pages_are_let_in_only_if_they_are_named(demo, origins) -> None:
    with running(demo, keys=(KEY,), origins=origins) as server:
        ask = (
            "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            "Origin: {}\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n"
        )
        allowed, refused = (raw(server, ask.format(f"https://{name}.example").encode()) for name in "ab")
    assert (b"access-control-allow-origin: https://a.example" in allowed) == bool(origins)
    assert b"access-control-allow-origin" not in refused


def test_nothing_that_was_said_is_logged(demo, caplog, capfd) -> None:
    secret = "a-secret-of-this-test"
    with caplog.at_level("DEBUG"), running(demo) as server:
        server.client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": secret}], max_tokens=2
        )
        post(server.url + CHAT, json.dumps({"messages": secret}).encode())
    ours = [record for record in caplog.records if not record.name.startswith(("openai", "httpx", "httpcore"))]
    assert not [record for record in ours if secret in record.getMessage()]
    assert secret not in "".join(capfd.readouterr())
