"""Chat templates: one file per generation, chosen by name."""

from __future__ import annotations

import importlib
import pkgutil

from glm_lightning.templates.base import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError

__all__ = ["Template", "find"]


def find(name: str, tokenizer: Tokenizer, model_type: str) -> Template:
    """The template of that name; ``auto`` chooses by the model's type and the tokenizer's control tokens.

    Raises:
        UserError: there is no such template, it does not fit the tokenizer, or ``auto`` finds none.
    """
    if name == "auto":
        name = _choose(tokenizer, model_type)
    known = [info.name for info in pkgutil.iter_modules(__path__) if info.name != "base"]
    if name not in known:
        raise UserError(f"model.template is {name!r}: must be one of auto, {', '.join(sorted(known))}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = [each for each in Template.__subclasses__() if each.__module__ == module.__name__]
    assert len(classes) == 1, f"{module.__name__} must define one Template"
    return classes[0](tokenizer)


def _choose(tokenizer: Tokenizer, model_type: str) -> str:
    from glm_lightning.templates import glm4

    if model_type == "glm" and all(name in tokenizer.controls for name in glm4.CONTROLS):
        return "glm4"
    if tokenizer.hf.chat_template:
        return "jinja"
    raise UserError(
        f"template: auto finds none for model type {model_type!r}: the tokenizer has neither GLM-4's control tokens "
        "nor a chat template of its own. Set template to a name, or put a chat_template.jinja into the model's folder"
    )
