from __future__ import annotations

import pytest
from official_rules import Official, official, write

from glm_lightning import tokenizers
from glm_lightning.tokenizers import Tokenizer

GENERATIONS = ("chatglm", "chatglm2", "chatglm3", "glm4")


@pytest.fixture(scope="session", params=GENERATIONS)
def rules(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Official:
    """A tiny release of each generation, and the official rules."""
    folder = tmp_path_factory.mktemp("official") / request.param
    write(folder, request.param)
    return official(folder, request.param)


@pytest.fixture(scope="session")
def ours(rules: Official) -> Tokenizer:
    return tokenizers.load(rules.folder)
