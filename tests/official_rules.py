"""Tiny tokenizer files in the official formats, trained here, and the official rules written down a second time."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import tiktoken
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

CORPUS = [
    "The quick brown fox jumps over the lazy dog, it isn't.",
    "类型#裙*材质#棉*风格#简约。这条裙子很好看，面料舒适，显瘦。你好！请问你是谁？",
    "def f(x):\n    return {'a': [1, 2, 3], \"b\": x + 0.5}  # ok",
    "0123456789 3.14 ==== .... 哈哈哈哈 aaaa <|user|> [gMASK] </s> Ünïcödé ﬁ ① ～ ：，",
    "Who are you? I'm an assistant. I'll answer. 我是一个助手。今天天气怎么样？",
]
SPELLED = ("<n>", "<|tab|>", *(f"<|blank_{n}|>" for n in range(2, 81)))
NAMES = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
FILES = {"chatglm": "ice_text.model", "chatglm2": "tokenizer.model", "chatglm3": "tokenizer.model"}
OFFICIAL_CLASS = {"glm4": "ChatGLM4Tokenizer"}


@dataclass(frozen=True)
class Official:
    """A folder in the official layout, and what the official code would do with its file."""

    generation: str
    folder: Path
    size: int  # ids of the file
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def write(folder: Path, generation: str) -> Path:
    """The tokenizer files of a tiny release. The code in it must never run."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILES.get(generation, "tokenizer.model")
    file.write_bytes(_ranks() if generation == "glm4" else _pieces(generation))
    kind = OFFICIAL_CLASS.get(generation, "ChatGLMTokenizer")
    settings = {"tokenizer_class": kind, "auto_map": {"AutoTokenizer": [f"tokenization_chatglm.{kind}", None]}}
    if generation in ("chatglm2", "chatglm3"):
        settings["name_or_path"] = f"THUDM/{generation}-6b"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "tokenization_chatglm.py").write_text("raise SystemExit('ran')\n", encoding="utf-8")
    return file


def official(folder: Path, generation: str, file: Path | None = None) -> Official:
    """The official rules over ``file``: `tokenization_chatglm.py` of each release, as it says it."""
    file = file or folder / FILES.get(generation, "tokenizer.model")
    if generation == "glm4":
        ranks = {base64.b64decode(t): int(r) for t, r in map(bytes.split, file.read_bytes().splitlines())}
        encoding = tiktoken.Encoding("glm4", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={})
        return Official(generation, folder, len(ranks), encoding.encode_ordinary, encoding.decode)
    sp = sentencepiece.SentencePieceProcessor(str(file))
    if generation == "chatglm":
        return Official(
            generation, folder, len(sp), lambda text: sp.encode(_before(text)), lambda ids: _after(sp.decode(ids))
        )
    return Official(generation, folder, len(sp), sp.encode, sp.decode)


def no_names(text: str, controls: Any) -> bool:
    """Whether plain transformers, which finds names of control tokens in text, sees none in ``text``."""
    return not any(name in text for name in controls)


def _before(text: str) -> str:
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for length in range(80, 1, -1):
        text = text.replace(" " * length, f"<|blank_{length}|>")
    return text


def _after(text: str) -> str:
    text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
    for length in range(2, 81):
        text = text.replace(f"<|blank_{length}|>", " " * length)
    return text


def _pieces(generation: str) -> bytes:
    first = generation == "chatglm"
    special: dict[str, Any] = {"control_symbols": list(NAMES), "user_defined_symbols": list(SPELLED), "pad_id": 3}
    plain: dict[str, Any] = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=model,
        model_type="unigram" if first else "bpe",
        vocab_size=560,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
        **(special if first else plain),
    )
    return model.getvalue()


def _ranks() -> bytes:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, show_progress=False)
    )
    byte = {letter: i for i, letter in bytes_to_unicode().items()}
    tokens = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    rows = (base64.b64encode(bytes(byte[c] for c in token)) + b" %d\n" % rank for token, rank in tokens)
    return b"".join(rows)
