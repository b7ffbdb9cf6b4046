"""Tiny tokenizers, trained in the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from glm_lightning import tokenizers
from glm_lightning.tokenizers import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Who are you? I am an assistant. user assistant system\n",
    "类型#裙*材质#棉*风格#简约。这条裙子很好看，面料舒适，显瘦。你好！请问你是谁？我是一个助手。\n",
    "<|user|> <|im_end|> [gMASK] </s> 0123456789 {} [] <think> </think>\n\n",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GLM4_CONTROLS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)

Make = Callable[..., Tokenizer]


def _backend(controls: Sequence[str]) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(controls),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make a byte-level tokenizer with these control tokens, written to a folder and read with `tokenizers.load`."""

    def make(controls: Sequence[str], *, eos: str | None, chat_template: str | None = None) -> Tokenizer:
        folder: Path = tmp_path_factory.mktemp("tokenizer")
        fast = PreTrainedTokenizerFast(tokenizer_object=_backend(controls), eos_token=eos, pad_token=controls[0])
        fast.chat_template = chat_template
        fast.save_pretrained(folder)
        return tokenizers.load(folder)

    return make


@pytest.fixture(scope="session")
def chatml(make_tokenizer: Make) -> Tokenizer:
    return make_tokenizer(CHATML_CONTROLS, eos="<|im_end|>", chat_template=CHATML)


@pytest.fixture(scope="session")
def glm4_tokenizer(make_tokenizer: Make) -> Tokenizer:
    return make_tokenizer(GLM4_CONTROLS, eos="<|endoftext|>")
