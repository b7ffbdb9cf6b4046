"""An exported folder behind `transformers serve`, which has nothing of ours: the same answers."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

import glm_lightning as gl
from glm_lightning.export import export_model

QUESTIONS = ["the quick brown fox", "你好", "who are you"]
COMMAND = Path(sys.executable).with_name("transformers")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not COMMAND.exists(), reason="no transformers command is there")]


@pytest.fixture
def exported(train, tmp_path):
    run = train("run", "trainer.max_steps=1", "trainer.precision=32-true")
    return export_model(str(run.path), tmp_path / "exported").folder


@pytest.fixture
def client(exported, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(COMMAND), "serve", str(exported), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (tmp_path / "said").open("w+") as said, subprocess.Popen(command, stdout=said, stderr=said) as server:
        try:
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
                deadline = time.monotonic() + 120
                while not answers(client):
                    assert server.poll() is None, (tmp_path / "said").read_text(encoding="utf-8")
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
                yield client
        finally:
            server.terminate()


def answers(client: openai.OpenAI) -> bool:
    try:
        client.models.list()
    except openai.APIConnectionError:
        return False
    return True


def test_the_same_answers_to_a_client(exported, client):
    glm = gl.load(exported)
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        wanted = {"model": str(exported), "messages": messages, "temperature": 0, "max_tokens": 12}
        expected = glm.generate(messages, max_new_tokens=12).strip()
        assert expected
        whole = client.chat.completions.create(**wanted)
        assert whole.choices[0].message.content.strip() == expected
        with client.chat.completions.create(**wanted, stream=True) as stream:
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(pieces).strip() == expected
