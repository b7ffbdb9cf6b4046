"""Chat templates: one file per generation, chosen by name."""

from __future__ import annotations

import importlib
import pkgutil

from glm_lightning.templates.base import SHARED, Template
from glm_lightning.templates.choosing import choose
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError

__all__ = ["Template", "find"]


def find(name: str, tokenizer: Tokenizer, model_type: str, *, generation: str | None = None) -> Template:
    """The template of that name; ``auto`` chooses by what tells the generations apart (`choosing.choose`).

    ``generation`` is what an official configuration says of itself (``Source.generation``), None where it says nothing.

    Raises:
        UserError: there is no such template, it does not fit the tokenizer, or ``auto`` finds none.
    """
    if name == "auto":
        # the generation decides; and transformers' tokenizer takes seconds to make, for files that it does not read
        own = None if generation else tokenizer.hf.chat_template
        name = choose(model_type=model_type, controls=tokenizer.controls, chat_template=own, generation=generation)
    known = [info.name for info in pkgutil.iter_modules(__path__) if info.name not in SHARED]
    if name not in known:
        raise UserError(f"model.template is {name!r}: must be one of auto, {', '.join(sorted(known))}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    templates = [each for each in classes if issubclass(each, Template)]
    assert len(templates) == 1, f"{module.__name__} must define one Template"
    return templates[0](tokenizer)
