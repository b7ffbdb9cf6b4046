from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glm_lightning.templates.jinja import Jinja
from glm_lightning.templates.verbatim import copies_contents
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import Conversation, Message

EACH, END = "{% for m in messages %}", "{% endfor %}"

PLAIN = [
    EACH + "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>" + END,
    EACH
    + "{% if m.role == 'user' and loop.last %}{{ 'a' ~ m.content + 'b' }}{% else %}{{ m.content }}{% endif %}"
    + END,
    "{% if messages[0]['role'] != 'system' %}{{ 'system' }}{% endif %}"
    + EACH
    + "{{ '<|im_start|>' + m['content'] + '<|im_end|>' }}"
    + END,
]

OTHERS = [
    "{{ messages }}",
    "{{ messages | tojson }}",
    "{{ messages[-1] }}",
    "{{ messages[0].values() }}",
    "{{ messages[i].content }}",
    "{{ self._TemplateReference__context['messages'] }}",
    "{% set ms = messages %}{{ ms }}",
    "{% set x = messages[0]['content'] %}{{ x | upper }}",
    "{% if 'a' + messages[0].content %}b{% endif %}",
    "{% for a, b in messages %}{{ a }}" + END,
    "{% for m in messages[1:] %}{{ m.content }}" + END,
    "{% for m in messages | reverse %}{{ m.content }}" + END,
    "{% macro f(x) %}{{ x }}{% endmacro %}" + EACH + "{{ f(m.content) }}" + END,
    "{% filter upper %}" + EACH + "{{ m.content }}" + END + "{% endfilter %}",
    "{% set x %}" + EACH + "{{ m.content }}" + END + "{% endset %}{{ x | upper }}",
    EACH + "{{ m }}" + END,
    EACH + "{{ m[key] }}" + END,
    EACH + "{{ m['con' + 'tent'] | upper }}" + END,
    EACH + "{{ m.items() }}" + END,
    EACH + "{{ m.get('content') | upper }}" + END,
    EACH + "{{ m.content | trim }}" + END,
    EACH + "{{ m['content'].strip() }}" + END,
    EACH + "{{ m.content[:3] }}" + END,
    EACH + "{{ m.content * 2 }}" + END,
    EACH + "{{ m.content in 'abc' }}" + END,
    EACH + "{{ m.content if loop.last else '' }}" + END,
    EACH + "{% if m.content %}x{% endif %}" + END,
    EACH + "{{ loop.previtem.content }}" + END,
    EACH + "{% set y = m %}{{ y | upper }}" + END,
    EACH + "{{ m.content",
]


@pytest.mark.parametrize("source", PLAIN)
def test_plain_templates_are_known_to_be_plain(source: str) -> None:
    assert copies_contents(source)


@pytest.mark.parametrize("source", OTHERS)
def test_whatever_else_is_done_with_contents_is_not_plain(source: str) -> None:
    assert not copies_contents(source)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6), source=st.sampled_from(PLAIN[::2]))
def test_plain_templates_give_what_looking_at_every_conversation_gives(
    make_tokenizer: Callable[..., Tokenizer], texts: list[str], source: str
) -> None:
    tokenizer = make_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos="<|im_end|>", chat_template=source)
    template = Jinja(tokenizer)
    looking = Jinja(tokenizer)
    looking._placeholders._verbatim = False
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(texts[: len(texts) // 2 * 2]))
    assert template._placeholders._verbatim
    assert template.render(Conversation(messages)) == looking.render(Conversation(messages))
