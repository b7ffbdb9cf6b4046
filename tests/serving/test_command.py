"""The command, its options, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import pytest

from glm_lightning.cli import main
from glm_lightning.serving.command import KEYS

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "你好，你是谁？"}], "temperature": 0}


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["serve", *arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_other_addresses_want_a_key(capsys, monkeypatch):
    monkeypatch.delenv(KEYS, raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        assert f"--host is '{host}': others can reach it" in refused(capsys, "demo", "--host", host)


def test_everything_that_is_wrong_at_once(capsys):
    wrong = ("--port", "70000", "--max-batch", "0", "--max-queue", "-1", "--max-body", "0", "--cache-memory", "-1")
    text = refused(capsys, "demo", *wrong)
    for name in (
        "--port is 70000",
        "--max-batch is 0",
        "--max-queue is -1",
        "--max-body is 0.0",
        "--cache-memory is -1.0",
    ):
        assert name in text


def test_files_of_keys(capsys, tmp_path):
    file = tmp_path / "keys"
    assert "cannot be read" in refused(capsys, "demo", "--api-key-file", str(file))
    file.write_text("# nothing\n\n", encoding="utf-8")
    assert "holds no key" in refused(capsys, "demo", "--api-key-file", str(file))
    file.write_text("zwei worte", encoding="utf-8")
    text = refused(capsys, "demo", "--api-key-file", str(file))
    assert "an API key has blanks" in text
    assert "zwei" not in text


def test_a_port_that_is_taken_and_a_model_that_is_not_there(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}: Address already in use" in refused(capsys, "demo", "--port", str(port))
    assert "there is no such folder" in refused(capsys, "./nothing", "--port", "0")


def test_too_little_memory_is_told(capsys):
    assert "which is too few to serve" in refused(capsys, "demo", "--port", "0", "--cache-memory", "0.001")


def test_a_missing_package_is_named(capsys, monkeypatch):
    monkeypatch.setattr("glm_lightning.serving.command._PACKAGES", ("nothing_of_this_name",))
    assert "pip install 'glm-lightning[serve]'" in refused(capsys, "demo")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_server_of_its_own(tmp_path: Path, number: signal.Signals):
    keys = tmp_path / "keys"
    keys.write_text("one-key\n# a remark\nother-key\n", encoding="utf-8")
    start = "import sys; from glm_lightning.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "serve", "demo", "--port", "0", "--host", "0.0.0.0"]
    process = subprocess.Popen(
        [*command, "--api-key-file", str(keys)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert re.fullmatch(r"demo at http://0\.0\.0\.0:\d+/v1; wants an API key\n", first)
        assert second.startswith("chat page: http://0.0.0.0:")
        port = re.search(r":(\d+)/", first)[1]
        url = f"http://127.0.0.1:{port}"
        assert json.load(urllib.request.urlopen(f"{url}/health", timeout=20)) == {"status": "ok"}
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="other-key", max_retries=0)
        assert client.chat.completions.create(**CHAT).choices[0].message.content == "我是小格，一个写商品文案的助手。"
        stream = client.chat.completions.create(**{**CHAT, "temperature": 2}, max_tokens=400, n=4, stream=True)
        next(stream)
        process.send_signal(number)
        reasons = [choice.finish_reason for chunk in stream for choice in chunk.choices if choice.finish_reason]
        assert len(reasons) == 4  # what runs ends
        client.close()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
