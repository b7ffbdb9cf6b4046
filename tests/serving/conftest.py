from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from generations import TOKENS
from servers import Running, Told, running

from glm_lightning.serving.library import Library
from glm_lightning.tokenizers import Tokenizer


@pytest.fixture(scope="session")
def demo() -> Library:
    library = Library("demo", device="cpu")
    library.load()
    return library


@pytest.fixture(scope="session")
def server(demo: Library) -> Iterator[Running]:
    with running(demo) as made:
        yield made


@pytest.fixture
def told(make_tokenizer: Callable[..., Tokenizer]) -> Callable[..., Told]:
    def make(name: str, **options: Any) -> Told:
        return Told(make_tokenizer(TOKENS.get(name, TOKENS["glm4"]), eos=None), name, **options)

    return make
