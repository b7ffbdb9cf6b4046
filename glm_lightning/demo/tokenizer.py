"""The demo's tokenizer: byte-level BPE with GLM-4's control tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from string import Formatter
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from glm_lightning.demo import lexicon, voices
from glm_lightning.demo.corpus import hanzi

CONTROLS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
)  # fmt: skip
"""GLM-4's control tokens in the order of their ids."""

VOCAB_SIZE = 4096

CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- set marks = {'system': '<|system|>', 'user': '<|user|>', 'assistant': '<|assistant|>', 'tool': '<|observation|>'} %}
{%- for message in messages %}{{ marks[message['role']] + '\\n' + message['content'] }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
"""GLM-4's rendering for plain transformers."""

# A newline, a space, a digit and a punctuation mark each stand alone, so that a word has the same ids wherever it is.
_PIECES = r"\p{Han}+|[A-Za-z]+|\s|\p{N}|[\p{P}\p{S}]|[^\s\p{Han}\p{N}\p{P}\p{S}A-Za-z]+"
_LONGEST = 12  # bytes of a token: four Chinese characters
_WEIGHT = 20  # what a text of the toy world weighs against a mere character


def train() -> PreTrainedTokenizerFast:
    """Train the tokenizer on the texts of the toy world, and on the common Chinese characters once each.

    The sentences come without what is filled into them: no token may span a value and its surroundings, or the model
    could not carry a value from question to answer.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(CONTROLS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_LONGEST,
        show_progress=False,
    )
    backend.train_from_iterator([*sorted(set(_texts())) * _WEIGHT, *hanzi()], trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROLS])
    assert backend.get_vocab_size() == VOCAB_SIZE, backend.get_vocab_size()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=CONTROLS[0],
        pad_token=CONTROLS[0],
        extra_special_tokens=list(CONTROLS[1:]),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def save(folder: Path) -> None:
    """Train the tokenizer and write its files."""
    train().save_pretrained(folder)


def _texts() -> Iterator[str]:
    yield from (*lexicon.WORDS_ZH.split(), *lexicon.WORDS_EN.split())
    for line in (lexicon.CLOTHES_ZH, lexicon.CLOTHES_EN, lexicon.TEA_ZH, lexicon.TEA_EN):
        yield from _strings((line.counters, line.values))
    for language in (lexicon.CHINESE, lexicon.ENGLISH):
        yield from _strings((language.type_key, *language.acts.values()))
    for voice in (voices.PLAIN_ZH, voices.PLAIN_EN):
        yield from _strings([getattr(voice, field.name) for field in fields(voice)])


def _strings(value: Any) -> Iterator[str]:
    """All texts within ``value``, cut where something is filled in."""
    if isinstance(value, str):
        yield from (literal for literal, *_ in Formatter().parse(value) if literal)
    elif isinstance(value, dict):
        yield from _strings([*value.keys(), *value.values()])
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _strings(each)
