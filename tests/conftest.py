"""Tiny tokenizers, trained in the test; a random tiny GLM and whole runs of it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tiny_runs import ROOT
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import GlmConfig, GlmForCausalLM, PreTrainedTokenizerFast

from glm_lightning import tokenizers
from glm_lightning.runs import RunFolder
from glm_lightning.tokenizers import Tokenizer

# Tests run side by side, a process a core, and so do the ranks and runs that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# Nothing is asked of a hub, here and in processes that tests start: without a network each question costs 10 seconds.
os.environ["HF_HUB_OFFLINE"] = "1"
constants.HF_HUB_OFFLINE = True

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


@pytest.fixture(scope="session")
def tiny_glm(tmp_path_factory: pytest.TempPathFactory, glm4_tokenizer: Tokenizer) -> Path:
    """A folder with two layers of random weights."""
    folder = tmp_path_factory.mktemp("tiny-glm")
    torch.manual_seed(0)
    config = GlmConfig(
        vocab_size=448,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        attention_bias=True,
        pad_token_id=0,
        eos_token_id=[0, 7, 9],
    )
    network = GlmForCausalLM(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    network.save_pretrained(folder)
    glm4_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 rows of very different lengths."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rng = random.Random(0)
    words = ["the", "quick", "brown", "fox", "裙", "材质", "棉", "风格", "简约", "你好", "who", "are", "you"]

    def text(most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, most)))

    lines = [
        json.dumps({"messages": [{"role": "user", "content": text(8)}, {"role": "assistant", "content": text(20)}]})
        for _ in range(48)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def overrides(tiny_glm: Path, rows: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Six optimizer steps of eight rows in float64, with further overrides behind."""

    def make(name: str, *more: str) -> list[str]:
        return [
            "model=local",
            f"model.path={tiny_glm}",
            "data=messages",
            f"data.train={rows}",
            "data.val=8",
            "data.batch_size=8",
            "data.max_length=256",
            f"data.cache_dir={tmp_path / 'cache'}",
            "trainer.max_epochs=2",
            "trainer.max_steps=6",
            "trainer.precision=64-true",
            "trainer.accelerator=cpu",
            "trainer.log_every_n_steps=1",
            "optimizer.lr=1e-2",
            "general=null",
            "logger=none",
            f"run_dir={tmp_path / name}",
            *more,
        ]

    return make


@pytest.fixture
def train(overrides: Callable[..., list[str]], tmp_path: Path) -> Callable[..., RunFolder]:
    """Run in this process."""
    import glm_lightning

    def run(name: str, *more: str) -> RunFolder:
        glm_lightning.train(overrides(name, *more))
        return RunFolder(tmp_path / name)

    return run


@pytest.fixture
def train_py(overrides: Callable[..., list[str]], tmp_path: Path) -> Callable[..., RunFolder]:
    """Run ``python train.py`` in a process of its own."""

    def run(name: str, *more: str) -> RunFolder:
        command = [sys.executable, str(ROOT / "train.py"), *overrides(name, *more)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return RunFolder(tmp_path / name)

    return run
