"""Prompts that are too long for a context."""

from __future__ import annotations

import itertools

import pytest

from glm_lightning import templates
from glm_lightning.inference.prompts import Prompt, prompt_ids, shortened
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message, UserError

SYSTEM = Message("system", "be kind")
ROUNDS = [
    message
    for number in range(4)
    for message in (Message("user", f"question {number} 裙 材质"), Message("assistant", f"answer {number}"))
]
ASKED = Conversation((SYSTEM, *ROUNDS, Message("user", "who are you, and what is it that you do all day long?")))


@pytest.fixture(scope="module")
def template(glm4_tokenizer: Tokenizer) -> Template:
    return templates.find("glm4", glm4_tokenizer, "glm")


def whole(conversation: Conversation, template: Template, tokenizer: Tokenizer) -> list[int]:
    return prompt_ids([template.prompt(conversation)], tokenizer)[0]


def test_as_many_of_the_newest_rounds_as_fit(template: Template, glm4_tokenizer: Tokenizer) -> None:
    expected = {}
    for left_out in (0, 2, 4, 6, 8):
        kept = Conversation((SYSTEM, *ASKED.messages[1 + left_out :]))
        expected[left_out] = whole(kept, template, glm4_tokenizer)
    for room in range(len(expected[8]), len(expected[0]) + 2):
        prompt = shortened(ASKED, thinking=None, template=template, tokenizer=glm4_tokenizer, room=room)
        fitting = min(left_out for left_out, ids in expected.items() if len(ids) <= room)
        assert prompt == Prompt(expected[fitting], turns_left_out=fitting)
        assert prompt.shortened == bool(fitting)


def test_the_last_turn_alone_is_cut_in_its_middle(template: Template, glm4_tokenizer: Tokenizer) -> None:
    last = whole(Conversation((SYSTEM, ASKED.messages[-1])), template, glm4_tokenizer)
    room = len(last) - 10
    prompt = shortened(ASKED, thinking=None, template=template, tokenizer=glm4_tokenizer, room=room)
    assert len(prompt.ids) == room
    assert (prompt.turns_left_out, prompt.tokens_cut) == (8, 10)
    same = [a == b for a, b in itertools.zip_longest(prompt.ids, last)]
    assert last[-8:] == prompt.ids[-8:]
    assert same.index(False) > 15  # the beginning is whole, too


def test_no_room_at_all_is_refused(template: Template, glm4_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="lower max_new_tokens"):
        shortened(ASKED, thinking=None, template=template, tokenizer=glm4_tokenizer, room=5)
