"""Encodes files in folders of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glm_lightning import templates
from glm_lightning.data import cache
from glm_lightning.data.encoding import Encoder
from glm_lightning.data.inputs import Inputs, sources_of
from glm_lightning.tokenizers import Tokenizer

BAD = {"prompt": "q"}


class Kitchen:
    """Encodes files in a folder of its own."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.template = templates.find("glm4", tokenizer, "glm")

    def encoder(self, max_length: int = 48) -> Encoder:
        return Encoder(tokenizer=self.tokenizer, template=self.template, max_length=max_length)

    def write(self, rows: list[Any], name: str = "a.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    def inputs(self, *paths: Path, **knobs: Any) -> Inputs:
        return Inputs.of(sources_of(list(paths), key="data.train", **({"format": "prompt_response"} | knobs)))

    def build(self, path: Path, name: str, **knobs: Any) -> Path:
        inputs = self.inputs(path)
        target, cached = cache.build(
            inputs.paths, format=inputs, encoder=self.encoder(), folder=self.folder / name, **knobs
        )
        assert not cached
        return target

    def key(self, path: Path, *, max_length: int = 48, **knobs: Any) -> str:
        inputs = self.inputs(path, **knobs)
        return cache.key_of(inputs.paths, format=inputs, encoder=self.encoder(max_length), folder=self.folder / "k")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def many(count: int) -> list[Any]:
    rows: list[Any] = [
        {"prompt": f"question {i} " + "长" * (i % 90), "response": f"answer {i % 7} 好\x01 <|user|>"}
        for i in range(count)
    ]
    rows[3], rows[count // 2] = BAD, {"prompt": "q", "response": 3}
    return rows
