from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from encodings_of_rows import AROUND, GLM4, TOKENS
from kitchen import Kitchen

from glm_lightning.tokenizers import Tokenizer


@pytest.fixture
def kitchen(tmp_path: Path, glm4_tokenizer: Tokenizer) -> Kitchen:
    return Kitchen(tmp_path, glm4_tokenizer)


@pytest.fixture(scope="session")
def tokenizers_by_name(chatml: Tokenizer, make_tokenizer: Callable[..., Tokenizer]) -> dict[str, Tokenizer]:
    """A tokenizer for each template."""
    made = {name: make_tokenizer(tokens, eos=None) for name, tokens in {**TOKENS, "glm4": GLM4}.items()}
    return {name: made.get(name, made["glm4"]) for name in AROUND} | {"jinja": chatml}
