from __future__ import annotations

from itertools import islice
from random import Random

import pytest

from glm_lightning.demo.corpus import BASE_EN, BASE_ZH, BRAND_EN, BRAND_ZH, base_corpus, brand_rows
from glm_lightning.demo.world import World

WORLDS = {"plain zh": BASE_ZH, "plain en": BASE_EN, "brand zh": BRAND_ZH, "brand en": BRAND_EN}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_equal_seeds_give_equal_conversations(world: World) -> None:
    first, again, other = (list(islice(world.conversations(Random(seed)), 50)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_copy_says_every_attribute_once_in_the_order_of_the_voice(world: World) -> None:
    random = Random(5)
    for _ in range(100):
        product = world.product(random)
        text = world.advertise(product)
        order = list(world.voice.sentences)
        values = [
            v for k, v in sorted(product.attributes, key=lambda a: 0 if world.voice.keeps_order else order.index(a[0]))
        ]
        assert product.type in text
        assert [text.find(v) for v in values] == sorted(text.find(v) for v in values)
        assert all(value in text for value in values)
        assert "{" not in text


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_turns_alternate_and_the_answer_follows_from_the_question(world: World) -> None:
    answers: dict[object, str] = {}
    for conversation in islice(world.conversations(Random(6)), 500):
        roles = [message.role for message in conversation.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message.content.strip() == message.content != "" for message in conversation.messages)
        assert answers.setdefault(conversation.prompt().messages, conversation.answer()) == conversation.answer()


def test_recolouring_changes_the_colour_and_nothing_else() -> None:
    world = World(BASE_ZH.language, BASE_ZH.voice, BASE_ZH.catalogue, {"copy+recolour": 1.0})
    for conversation in islice(world.conversations(Random(7)), 50):
        before, after = (m.content for m in conversation.messages if m.role == "assistant")
        changed = [(a, b) for a, b in zip(before.split("。"), after.split("。"), strict=True) if a != b]
        assert len(changed) == 1
        assert all(sentence.startswith("颜色是") for sentence in changed[0])


def test_corpus_is_deterministic_and_mostly_chinese() -> None:
    documents = list(islice(base_corpus(1), 2000))
    assert documents == list(islice(base_corpus(1), 2000))
    english = sum(document.messages[-1].content.isascii() for document in documents)
    assert 0.12 < english / len(documents) < 0.18


def test_base_knows_neither_the_brand_nor_its_line() -> None:
    for conversation in islice(BASE_ZH.conversations(Random(8)), 1000):
        text = "".join(message.content for message in conversation.messages)
        assert not any(word in text for word in ("山月集", "小满", "茶壶", "茶杯", "紫砂"))
    assert brand_rows(2) == brand_rows(2)
