"""``glm predict`` on an endpoint: patience, failures of single rows, a key that nobody is shown."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from glm_lightning.data.formats.recognition import named
from glm_lightning.inference import endpoint, predict
from glm_lightning.inference.messages import conversation, openai_form
from glm_lightning.types import Origin, UserError

SECRET = "sk-secret-123"
Answer = tuple[int, dict[str, str], Any]


class Scripted:
    """An endpoint that answers as it is told, from the request's body and how often the same was asked before."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any], int], Answer] = lambda body, _: said(body["messages"][-1]["content"])
        self.names = ["one"]
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.url = ""

    def ask(self, body: dict[str, Any], key: str | None) -> Answer:
        with self._lock:
            before = self.bodies.count(body)
            self.bodies.append(body)
            self.keys.append(key)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self.answer(body, before)
        finally:
            with self._lock:
                self._at_once -= 1


def said(content: str | None, *, reason: str = "stop", **more: Any) -> Answer:
    message = {"role": "assistant", "content": content, **more}
    return 200, {}, {"choices": [{"message": message, "finish_reason": reason}]}


def failed(status: int, message: str, **headers: str) -> Answer:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, {"error": {"message": message}}


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(200, {}, {"data": [{"id": name} for name in script.names]})

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(*script.ask(body, self.headers["Authorization"]))

        def _send(self, status: int, headers: dict[str, str], content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield script
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(endpoint.time, "sleep", waited.append)
    return waited


@pytest.fixture
def predicted(tmp_path: Path, scripted: Scripted) -> Callable[..., list[dict[str, Any]]]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"q{number}"}) + "\n" for number in range(12)))

    def run(*options: str, out: str = "out.jsonl") -> list[dict[str, Any]]:
        predict.main([scripted.url, str(rows), "--out", str(tmp_path / out), *options])
        return [json.loads(line) for line in (tmp_path / out).read_text(encoding="utf-8").splitlines()]

    return run


Predict = Callable[..., list[dict[str, Any]]]


def test_rows_are_answered_in_order_and_no_more_at_once_than_allowed(predicted: Predict, scripted: Scripted) -> None:
    def slow(body: dict[str, Any], _: int) -> Answer:
        time.sleep(0.05)
        return said(body["messages"][0]["content"].upper())

    scripted.answer = slow
    lines = predicted("--batch-size", "3", "--max-new-tokens", "7", "--thinking")
    assert [line["answer"] for line in lines] == [f"Q{number}" for number in range(12)]
    assert scripted.most_at_once == 3
    assert sorted(scripted.bodies, key=lambda body: int(body["messages"][0]["content"][1:]))[3] == {
        "model": "one",
        "max_tokens": 7,
        "temperature": 0.0,
        "chat_template_kwargs": {"enable_thinking": True},
        "messages": [{"role": "user", "content": "q3"}],
    }


def test_what_was_sampled_has_a_seed_of_its_own_for_each_sample(predicted: Predict, scripted: Scripted) -> None:
    scripted.answer = lambda body, _: said(str(body["seed"]))
    lines = predicted("-n", "2", "--temperature", "0.5", "--seed", "5", "--top-p", "0.9")
    assert [(line["sample"], line["answer"]) for line in lines] == [(0, "5"), (1, "6")] * 12
    assert {body["top_p"] for body in scripted.bodies} == {0.9}


def test_a_busy_endpoint_is_waited_for_as_it_says(predicted: Predict, scripted: Scripted, pauses: list[float]) -> None:
    late = email.utils.formatdate(time.time() + 100, usegmt=True)

    def busy(body: dict[str, Any], before: int) -> Answer:
        if body["messages"][0]["content"] != "q4" or before == 3:
            return said("fine")
        headers: dict[str, str] = [{"Retry_After": "7.5"}, {"Retry_After": late}, {}][before]
        return failed((429, 503, 500)[before], "busy", **headers)

    scripted.answer = busy
    assert [line["answer"] for line in predicted()] == ["fine"] * 12
    first, second, third = pauses
    assert first == 7.5
    assert 90 < second <= 100
    assert 2 <= third <= 4  # its own back-off, doubled twice, between a half and the whole


def test_a_row_that_fails_is_told_and_asked_again_by_the_same_command(
    predicted: Predict, scripted: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def picky(body: dict[str, Any], before: int) -> Answer:
        wrong = {"q2": failed(400, "bad words"), "q5": (200, {}, {"oops": 1}), "q7": said("x", reason="content_filter")}
        return wrong.get(body["messages"][0]["content"], said("fine"))

    scripted.answer = picky
    with pytest.raises(UserError) as caught:
        predicted()
    two, five, seven, advice = caught.value.problems
    assert two == f"{tmp_path / 'rows.jsonl'}:3: 400 bad words"
    assert "rows.jsonl:6: answers without a message" in five
    assert "rows.jsonl:8: the answer was withheld" in seven
    assert "the same command asks these 3 again" in advice
    assert "--skip-bad-rows" in advice
    assert not (tmp_path / "out.jsonl").exists()
    scripted.bodies.clear()
    lines = predicted("--skip-bad-rows")
    assert sorted(body["messages"][0]["content"] for body in scripted.bodies) == ["q2", "q5", "q7"]
    assert [line["row"]["instruction"] for line in lines] == [f"q{number}" for number in (0, 1, 3, 4, 6, 8, 9, 10, 11)]
    printed = " ".join(capsys.readouterr().err.split())
    assert "left out: " in printed
    assert "9 answers in" in printed
    assert "9 were there from an earlier call" in printed


def test_an_endpoint_that_fails_all_rows_is_given_up(predicted: Predict, scripted: Scripted) -> None:
    scripted.answer = lambda *_: failed(400, "Unsupported parameter")
    with pytest.raises(UserError, match="400 Unsupported parameter"):
        predicted("--batch-size", "1")
    assert len(scripted.bodies) == 8  # that many failures in a row end it


def test_an_endpoint_that_stays_busy_is_given_up(predicted: Predict, scripted: Scripted, pauses: list[float]) -> None:
    scripted.answer = lambda *_: failed(429, "quota", Retry_After="86400")
    with pytest.raises(UserError, match="429 quota"):
        predicted()
    assert pauses == []


@pytest.mark.parametrize("status", [401, 404])
def test_the_key_is_sent_and_never_shown(
    predicted: Predict,
    scripted: Scripted,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(endpoint.KEY, f"{SECRET}\n")
    predicted(out="fine.jsonl")
    assert set(scripted.keys) == {f"Bearer {SECRET}"}
    scripted.answer = lambda *_: failed(status, f"no such thing for {SECRET}")
    with pytest.raises(UserError) as caught:
        predicted()
    assert "no such thing for ***" in str(caught.value)
    assert (endpoint.KEY in str(caught.value)) == (status == 401)
    written = [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()]
    assert all(SECRET not in text for text in [*written, str(caught.value), *capsys.readouterr()])


def test_nobody_else_is_told_the_key(predicted: Predict, scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(endpoint.KEY, SECRET)
    scripted.answer = lambda *_: (307, {"Location": "http://127.0.0.1:9/elsewhere"}, {})
    with pytest.raises(UserError, match="307"):
        predicted("--batch-size", "1")


@pytest.mark.parametrize("key", ["two words", "schlüssel", "two\nlines"])
def test_a_key_that_is_none_is_refused_unseen(predicted: Predict, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(endpoint.KEY, key)
    with pytest.raises(UserError, match=endpoint.KEY) as caught:
        predicted()
    assert key not in str(caught.value)


def test_one_of_several_models_must_be_named(predicted: Predict, scripted: Scripted) -> None:
    scripted.names = ["small", "large"]
    with pytest.raises(UserError, match="offers small, large; name one: --model NAME"):
        predicted()
    predicted("--model", "large")
    assert {body["model"] for body in scripted.bodies} == {"large"}


def test_what_says_nothing_to_an_endpoint_is_refused(predicted: Predict, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        predicted("--device", "cpu", "--adapter", "x")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["--device", "--adapter"]
    with pytest.raises(UserError, match=r"--model is 'x': names a model of an endpoint"):
        predict.main(["demo", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "o"), "--model", "x"])


def test_an_endpoint_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "q"}\n')
    with pytest.raises(UserError, match="cannot be reached"):
        predict.main(["http://127.0.0.1:9/v1", str(rows), "--out", str(tmp_path / "o")])


def test_calls_and_reasoning_go_there_and_come_back(scripted: Scripted, tmp_path: Path) -> None:
    tool = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "北京"}'}}
    turns = [
        {"role": "user", "content": "天气？"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "a", **call}, {"id": "b", **call}]},
        {"role": "tool", "tool_call_id": "a", "content": "晴"},
        {"role": "tool", "tool_call_id": "b", "content": "雨"},
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": turns, "tools": [tool]}))
    scripted.answer = lambda *_: said(None, reason="tool_calls", tool_calls=[{"id": "z", **call}], reasoning="hm")
    predict.main([scripted.url, str(rows), "--out", str(tmp_path / "out.jsonl")])
    (body,) = scripted.bodies
    assert body["tools"] == [{"type": "function", "function": tool}]
    named_by = [each["id"] for each in body["messages"][1]["tool_calls"]]
    assert [turn["tool_call_id"] for turn in body["messages"][2:]] == named_by
    line = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert line["tool_calls"] == [{"name": "weather", "arguments": {"city": "北京"}}]
    assert line["reasoning"] == "hm"
    # what was written is a row to learn
    learned = named("messages").parse(line, Origin(tmp_path, 1))
    assert [message.role for message in learned.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert learned.messages[-1].reasoning == "hm"
    again = openai_form(learned)
    assert conversation(again["messages"], again["tools"]).messages == learned.messages
