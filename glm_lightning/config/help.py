"""The keys with their comments, for ``python train.py --help``."""

from __future__ import annotations

import re

from omegaconf import DictConfig, OmegaConf

from glm_lightning.config import composing, places

RESOLVER = "keys_with_comments"
# A key of the first column with everything below it.
_BLOCK = r"(?m)^(?:{names}):.*\n(?:(?:[ \t].*)?\n)*"


def register() -> None:
    """Let ``${keys_with_comments:}`` in train.yaml's help stand for `keys_with_comments`."""
    OmegaConf.register_new_resolver(RESOLVER, _resolve, replace=True)


def _resolve(*, _root_: DictConfig) -> str:
    text = keys_with_comments(_root_.hydra.runtime.choices)
    return text.replace("$", "$$")  # Hydra makes a string.Template of it


def keys_with_comments(choices: DictConfig) -> str:
    """The yaml of train.yaml and of every chosen option, as it stands, with its comments."""
    primary = _without((places.conf_dir() / f"{composing.CONFIG_NAME}.yaml").read_text(encoding="utf-8"))
    parts = [re.sub(r"\A(?:#.*\n)*", "", primary)]
    for group in sorted(map(str, choices)):
        option = choices[group]
        if isinstance(option, str) and not group.startswith("hydra/"):
            parts.append(f"{group}:  # {group}={option}\n{_indented(_text(group, option))}")
    return "\n\n".join(parts)


def _text(group: str, option: str) -> str:
    """An option's yaml behind that of the options it builds on."""
    path = places.conf_dir() / group / f"{option}.yaml"
    loaded = OmegaConf.load(path)
    bases = loaded.get("defaults", []) if isinstance(loaded, DictConfig) else []
    names = [name for name in bases if isinstance(name, str) and name != "_self_"]
    return "\n".join([_text(group, name) for name in names] + [_without(path.read_text(encoding="utf-8"))])


def _without(text: str) -> str:
    """Without what is Hydra's own business."""
    return re.sub(_BLOCK.format(names="defaults|hydra"), "", f"{text}\n").strip("\n")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.splitlines())
