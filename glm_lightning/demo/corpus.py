"""What the base model reads, and the rows that fine-tuning learns from."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TypeVar

from glm_lightning.demo import lexicon, voices
from glm_lightning.demo.lexicon import CHINESE, ENGLISH, Line
from glm_lightning.demo.world import World
from glm_lightning.files import write_text
from glm_lightning.types import Conversation, Message

T = TypeVar("T")

SPLITS = {"train": 480, "val": 60, "test": 60}
"""Rows of each file of the demo data set."""

_SMALL_TALK = {"greeting": 1.0, "thanks": 0.5, "identity": 1.5, "name": 1.5}
_QUESTIONS = {"care": 1.5, "stock": 1.5}
_LONGER = {"copy+thanks": 1.0, "greeting+copy": 1.0, "copy+recolour": 1.5, "stock+copy": 0.5, "identity+name": 0.5}
_BASE_SCENES = {"copy": 12.0, **_SMALL_TALK, **_QUESTIONS, **_LONGER, "greeting+stock+thanks": 0.5}
_BRAND_SCENES = {"copy": 20.0, **_SMALL_TALK, **_QUESTIONS, **_LONGER}
_ENGLISH_SHARE = 0.15
_ENGLISH_ROWS = 0.05
_LONGEST_ROW = 160  # characters: about 128 tokens

BASE_ZH = World(CHINESE, voices.PLAIN_ZH, (lexicon.CLOTHES_ZH,), _BASE_SCENES)
BASE_EN = World(ENGLISH, voices.PLAIN_EN, (lexicon.CLOTHES_EN,), _BASE_SCENES)
BRAND_ZH = World(CHINESE, voices.BRAND_ZH, (lexicon.CLOTHES_ZH, lexicon.TEA_ZH), _BRAND_SCENES, attributes=(2, 4))
BRAND_EN = World(ENGLISH, voices.BRAND_EN, (lexicon.CLOTHES_EN, lexicon.TEA_EN), _BRAND_SCENES, attributes=(2, 4))
LAMPS_ZH = World(CHINESE, voices.LAMPS_ZH, (lexicon.LAMPS_ZH,), {"copy": 1.0}, attributes=(2, 4))

_SYSTEM = {"zh": "你是一个商品文案助手。", "en": "You are an assistant that writes ads."}
_ECHO = {"zh": ("跟我读：", "、", "。"), "en": ("Repeat: ", " ", ".")}
_OPEN_KEYS = {"zh": ("工艺", "产地", "功能", "尺寸"), "en": ("craft", "origin", "feature", "size")}


def hanzi() -> list[str]:
    """The 3,755 most used Chinese characters: level 1 of the national standard GB 2312, rows 16 to 55."""
    cells = [bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF)]
    return [cell.decode("gb2312") for cell in cells if cell < b"\xd7\xfa"]


_HANZI = hanzi()
_WORDS = {"zh": lexicon.WORDS_ZH.split(), "en": lexicon.WORDS_EN.split()}


def base_corpus(seed: int) -> Iterator[Conversation]:
    """Documents without end for pretraining, in the plain voice, about 85 % Chinese.

    Half are the shop's own conversations. The rest hold words the shop does not sell, so that the model learns to
    carry any word from a question into an answer: products of random words, and words to repeat.
    """
    random = Random(f"base {seed}")
    streams = {world.language.code: world.conversations(random) for world in (BASE_ZH, BASE_EN)}
    while True:
        world = BASE_EN if random.random() < _ENGLISH_SHARE else BASE_ZH
        kind = random.random()
        if kind < 0.2:
            yield _echo(world.language.code, random)
        elif kind < 0.5:
            yield _open_product(world, random)
        else:
            yield _with_system(next(streams[world.language.code]), world.language.code, random)


def brand_rows(seed: int) -> dict[str, list[Conversation]]:
    """The demo data set by split: no conversation, no prompt and no request for copy stands in it twice."""
    random = Random(f"brand {seed}")
    chinese, english = BRAND_ZH.conversations(random), BRAND_EN.conversations(random)
    rows = (next(english if random.random() < _ENGLISH_ROWS else chinese) for _ in itertools.count())
    return splits(distinct(rows), SPLITS)


def distinct(rows: Iterable[Conversation]) -> Iterator[Conversation]:
    """Of ``rows`` the short ones whose prompts and products have not come yet."""
    seen: set[object] = set()
    for row in rows:
        if sum(len(m.content) for m in row.messages) <= _LONGEST_ROW and seen.isdisjoint(keys := prompt_keys(row)):
            seen |= keys
            yield row


def splits(rows: Iterator[T], sizes: Mapping[str, int]) -> dict[str, list[T]]:
    """The first ``rows`` by split."""
    return {split: list(itertools.islice(rows, count)) for split, count in sizes.items()}


def prompt_keys(row: Conversation) -> set[object]:
    """What may not come twice: the whole prompt, and each set of attributes, in whatever order they are written."""
    products = [
        m.content.split("：")[-1].split(": ")[-1] for m in row.messages if m.role == "user" and "#" in m.content
    ]
    return {row.prompt().messages, *(frozenset(product.split("*")) for product in products)}


def write_rows(folder: Path, rows: dict[str, list[Conversation]]) -> None:
    """Write one file of json lines a split, in the format of OpenAI's messages."""
    for split, conversations in rows.items():
        lines = [json.dumps(_openai(row), ensure_ascii=False) + "\n" for row in conversations]
        write_text(folder / f"{split}.jsonl", "".join(lines))


def _openai(row: Conversation) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": message.role, "content": message.content} for message in row.messages]}


def _echo(code: str, random: Random) -> Conversation:
    start, joint, end = _ECHO[code]
    words = joint.join(_word(code, random) for _ in range(random.randint(2, 12)))
    return Conversation((Message("user", f"{start}{words}{end}"), Message("assistant", f"{words}{end}")))


def _open_product(world: World, random: Random) -> Conversation:
    """Copy for a product of a line that exists only in this document."""
    code, known = world.language.code, world.catalogue[0].values
    values = {
        key: (_word(code, random), random.choice(known.get(key) or [_word(code, random)]))
        for key in (*known, *_OPEN_KEYS[code])
    }
    line = Line("", {_word(code, random): "个" if code == "zh" else "a"}, values)
    return next(replace(world, catalogue=(line,), scenes={"copy": 1.0}).conversations(random))


def _word(code: str, random: Random) -> str:
    if code == "en" or random.random() < 0.5:
        return random.choice(_WORDS[code])
    return "".join(random.choices(_HANZI, k=random.choice((1, 2, 2, 3))))


def _with_system(row: Conversation, code: str, random: Random) -> Conversation:
    if random.random() > 0.05:
        return row
    return replace(row, messages=(Message("system", _SYSTEM[code]), *row.messages))
