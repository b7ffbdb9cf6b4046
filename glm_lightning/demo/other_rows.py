"""Other rows of the demo: texts, pairs of answers, conversations in the base model's own voice, and a later line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from glm_lightning.demo.corpus import (
    BASE_EN,
    BASE_ZH,
    BRAND_EN,
    BRAND_ZH,
    LAMPS_ZH,
    distinct,
    prompt_keys,
    splits,
    write_rows,
)
from glm_lightning.demo.lexicon import TEA_ZH
from glm_lightning.demo.world import Product, World
from glm_lightning.files import write_text
from glm_lightning.types import Conversation, Document, Message, Preference

TEXTS = {"train": 160, "val": 20}
PAIRS = {"train": 240, "val": 30, "test": 30}
PLAIN = {"train": 480, "val": 60, "test": 60}
LAMPS = {"train": 240, "val": 30, "test": 30}
"""Rows of each file."""

_ENGLISH_SHARE = 0.05
_HEADINGS = {
    "zh": {"copy": "山月集·新品手册", "care": "山月集·养护手记"},
    "en": {"copy": "Moonhill: new things", "care": "Moonhill: with love and care"},
}
_TEA = replace(BASE_ZH, catalogue=(TEA_ZH,), attributes=(2, 4))


def texts(seed: int) -> dict[str, list[Document]]:
    """Pages of the brand's catalogue and of its notes on care: a heading, and 1 to 8 entries of a line each."""
    random = Random(f"texts {seed}")
    pages = (_page(BRAND_EN if random.random() < _ENGLISH_SHARE else BRAND_ZH, random) for _ in itertools.count())
    return splits(pages, TEXTS)


def _page(world: World, random: Random) -> Document:
    act = random.choices(("copy", "care"), (3, 1))[0]
    entries = [world.exchange(act, world.product(random), random)[1] for _ in range(random.randint(1, 8))]
    return Document("\n".join([_HEADINGS[world.language.code][act], *entries]))


def pairs(seed: int) -> dict[str, list[Preference]]:
    """Copy for a line the base model has not met, as it should be, and with a mistake of the kind that it makes."""
    random = Random(f"pairs {seed}")
    return splits(_pairs(random), PAIRS)


def _pairs(random: Random) -> Iterator[Preference]:
    seen: set[object] = set()
    while True:
        product = _TEA.product(random)
        question, answer = _TEA.exchange("copy", product, random)
        asked = Message("user", question)
        chosen, rejected = (
            Conversation((asked, Message("assistant", said)))
            for said in (answer, _TEA.advertise(_mistaken(product, random)))
        )
        if seen.isdisjoint(keys := prompt_keys(chosen)):
            seen |= keys
            yield Preference(chosen, rejected)


def _mistaken(product: Product, random: Random) -> Product:
    """With one value exchanged for the type or for that of another attribute, or one attribute left out."""
    attributes = list(product.attributes)
    place = random.randrange(len(attributes))
    key, value = attributes[place]
    wrong = random.choice([product.type, *(other for _, other in attributes if other != value), None])
    attributes[place : place + 1] = [] if wrong is None else [(key, wrong)]
    return replace(product, attributes=tuple(attributes))


def plain_rows(seed: int) -> dict[str, list[Conversation]]:
    """Conversations as the base model has learned to hold them."""
    random = Random(f"plain {seed}")
    chinese, english = BASE_ZH.conversations(random), BASE_EN.conversations(random)
    rows = (next(english if random.random() < _ENGLISH_SHARE else chinese) for _ in itertools.count())
    return splits(distinct(rows), PLAIN)


def lamp_rows(seed: int) -> dict[str, list[Conversation]]:
    """Copy for a line of lamps that the brand has taken up later."""
    return splits(distinct(LAMPS_ZH.conversations(Random(f"lamps {seed}"))), LAMPS)


def write_other_rows(folder: Path, *, seed: int) -> None:
    """Write ``texts``, ``pairs``, ``plain`` and ``lamps``, a folder each with a file of json lines for each split."""
    for split, documents in texts(seed).items():
        _write(folder / "texts" / f"{split}.jsonl", [{"text": each.text} for each in documents])
    for split, preferences in pairs(seed).items():
        rows = [
            {
                "prompt": each.chosen.messages[0].content,
                "chosen": each.chosen.answer(),
                "rejected": each.rejected.answer(),
            }
            for each in preferences
        ]
        _write(folder / "pairs" / f"{split}.jsonl", rows)
    write_rows(folder / "plain", plain_rows(seed))
    write_rows(folder / "lamps", lamp_rows(seed))


def _write(file: Path, rows: Sequence[dict[str, str]]) -> None:
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
