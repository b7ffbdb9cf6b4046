"""Adapters of every kind over one base, by name."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file
from servers import running

import glm_lightning as gl
from glm_lightning.serving.library import Library
from glm_lightning.types import UserError

METHODS = ("lora", "ia3", "prompt_tuning", "ptuning_v2")
QUESTIONS = [[{"role": "user", "content": text}] for text in ("who are you", "你好", "the quick brown fox")]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, tiny_glm: Path, rows: Path) -> Path:
    """Runs of some methods, and things that are no adapters."""
    folder = tmp_path_factory.mktemp("shelf")
    for method in METHODS:
        gl.train([
            "model=local", f"model.path={tiny_glm}", "data=messages", f"data.train={rows}", "data.val=8",
            "data.batch_size=8", f"data.cache_dir={folder.parent / 'cache'}", "trainer.max_epochs=1",
            "trainer.max_steps=2", "trainer.precision=32-true", "trainer.accelerator=cpu", "optimizer.lr=3e-1",
            "logger=none", f"run_dir={folder / method}", f"method={method}",
        ])  # fmt: skip
    (folder / "notes.txt").write_text("no adapter", encoding="utf-8")
    (folder / "empty").mkdir()
    return folder


def made(source: Path, **options) -> Library:
    library = Library(source, device="cpu", **options)
    library.load()
    return library


def ask(server, model: str, messages) -> str:
    answer = server.client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=12)
    assert answer.model == model
    return answer.choices[0].message.content


def test_each_adapter_answers_as_it_does_alone(shelf, tiny_glm):
    library = made(tiny_glm, folder=shelf)
    base = tiny_glm.name
    assert library.names() == [base, *sorted(METHODS)]
    expected = {
        name: [gl.load(shelf / name if name in METHODS else tiny_glm).generate(q, max_new_tokens=12) for q in QUESTIONS]
        for name in library.names()
    }
    assert len({tuple(texts) for texts in expected.values()}) == 1 + len(METHODS)
    asked = [(name, i) for i in range(len(QUESTIONS)) for name in library.names()] * 2
    with running(library) as server, ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda each: ask(server, each[0], QUESTIONS[each[1]]), asked))
        with pytest.raises(openai.NotFoundError):
            ask(server, "empty", QUESTIONS[0])
        with pytest.raises(openai.NotFoundError):
            ask(server, "../shelf/lora", QUESTIONS[0])
    assert texts == [expected[name][i] for name, i in asked]


def test_a_run_is_served_with_its_base_beside_it(shelf, tiny_glm):
    library = made(shelf / "lora", name="mine")
    assert library.names() == ["mine", tiny_glm.name]
    with running(library) as server:
        texts = [ask(server, name, QUESTIONS[0]) for name in library.names()]
        default = server.client.chat.completions.create(model="", messages=QUESTIONS[0], temperature=0, max_tokens=12)
    assert texts == [gl.load(each).generate(QUESTIONS[0], max_new_tokens=12) for each in (shelf / "lora", tiny_glm)]
    assert default.choices[0].message.content == texts[0]


def test_an_adapter_that_comes_later_and_one_that_changes(shelf, tiny_glm, tmp_path):
    folder = tmp_path / "adapters"
    folder.mkdir()
    library = made(tiny_glm, folder=folder)
    with running(library) as server:
        before = ask(server, tiny_glm.name, QUESTIONS[0])
        with pytest.raises(openai.NotFoundError):
            ask(server, "new", QUESTIONS[0])
        adapter = Path(shutil.copytree(shelf / "lora" / "adapter", folder / "new"))
        assert ask(server, "new", QUESTIONS[0]) == gl.load(adapter).generate(QUESTIONS[0], max_new_tokens=12) != before
        file = adapter / "adapter_model.safetensors"
        save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}, file)
        assert ask(server, "new", QUESTIONS[0]) == before
        shutil.rmtree(adapter)
        with pytest.raises(openai.NotFoundError):
            ask(server, "new", QUESTIONS[0])


def test_only_so_many_adapters_are_kept(shelf, tiny_glm):
    library = made(tiny_glm, folder=shelf, max_loaded=2)

    async def all_of_them() -> None:
        for name in (*METHODS, "lora"):
            await library.get(name)

    asyncio.run(all_of_them())
    assert list(library._loaded) == [tiny_glm.name, "ptuning_v2", "lora"]


def test_adapters_that_do_not_belong_are_left_out_and_named(shelf, tiny_glm, tmp_path, caplog):
    folder = tmp_path / "adapters"
    other = Path(shutil.copytree(shelf / "lora" / "adapter", folder / "other"))
    about = json.loads((other / "glm_lightning.json").read_text(encoding="utf-8"))
    (other / "glm_lightning.json").write_text(json.dumps(about | {"fingerprint": "0"}), encoding="utf-8")
    torn = Path(shutil.copytree(shelf / "lora" / "adapter", folder / "torn"))
    (torn / "adapter_model.safetensors").write_bytes(b"torn")
    library = Library(tiny_glm, folder=folder, device="cpu")
    with caplog.at_level(logging.WARNING):
        assert library.check() == [tiny_glm.name, "torn"]
    assert "other is not served: " in caplog.text
    assert "was trained on other weights" in caplog.text
    library.load()
    with running(library) as server, pytest.raises(openai.NotFoundError, match="the server's log says why") as refused:
        ask(server, "torn", QUESTIONS[0])
    assert str(tmp_path) not in str(refused.value)
    assert "torn cannot be served: " in caplog.text


def test_what_is_not_there_is_told_at_the_start(tiny_glm, tmp_path):
    with pytest.raises(UserError, match=r"--adapters is .*: there is no such folder"):
        Library(tiny_glm, folder=tmp_path / "none")
    with pytest.raises(UserError, match="there is no such folder"):
        Library(tmp_path / "none").check()


def test_the_makers_way_of_drawing_is_the_default(tiny_glm, tmp_path):
    moved = Path(shutil.copytree(tiny_glm, tmp_path / "moved"))
    config = {"do_sample": True, "temperature": 0.8, "top_p": 0.7}
    (moved / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
    sampling = made(moved)._loaded["moved"].served.sampling
    assert (sampling.temperature, sampling.top_p) == (0.8, 0.7)
    assert made(tiny_glm)._loaded[tiny_glm.name].served.sampling.temperature == 1.0
