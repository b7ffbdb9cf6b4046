"""The official tokenizer files of ChatGLM-6B, ChatGLM2, ChatGLM3 and GLM-4-9B: recognised, and written back.

They come with code that is to be run; here none of it is. The generation is told by what the files hold, never by the
name of their folder.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from glm_lightning.files import fingerprint, read_json, write_json
from glm_lightning.types import UserError

Generation = Literal["chatglm", "chatglm2", "chatglm3", "glm4"]

_FIRST, _LATER = "ice_text.model", "tokenizer.model"
CONFIG = "tokenizer_config.json"
FAST = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"
FILES = (CONFIG, FAST, "config.json", _TEMPLATE, _FIRST, _LATER)
"""What recognition and loading look at; to be fetched from a hub."""

_ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_SHARED = ("[MASK]", "[gMASK]", "[sMASK]")

APPENDED: Mapping[Generation, tuple[str, ...]] = {
    "chatglm": (),
    "chatglm2": (*_SHARED, "sop", "eop"),
    "chatglm3": (*_SHARED, "sop", "eop", *_ROLE_TOKENS),
    "glm4": (
        *("<|endoftext|>", *_SHARED, "<sop>", "<eop>", *_ROLE_TOKENS),
        *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    ),
}
"""Control tokens whose ids follow those of the file, in order (official `tokenization_chatglm.py` of each release)."""

ROLES: Mapping[Generation, Mapping[str, str]] = {
    "chatglm": {"bos_token": "<sop>", "eos_token": "<eop>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "chatglm2": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"},
    "chatglm3": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"},
    "glm4": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
}
"""Which token begins, ends and pads, by transformers' names for these roles."""

# The two files that lie in many repositories, by the first half of their SHA-256.
_KNOWN = ("e7dc4c393423b76e4373e5157ddc3480", "5a493598071550244b2ee7f26118f3ed")
_MARK = "glm_lightning"
_ADDED = "added_tokens_decoder"
_RANKS = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")


@dataclass(frozen=True)
class Release:
    """An official tokenizer: its generation, its file, and its tokenizer_config.json if there is one."""

    generation: Generation
    file: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    def appended(self, first: int) -> dict[str, int]:
        """Name and id of each control token behind the ``first`` ids of the file; later ones from the settings.

        Raises:
            UserError: the settings leave ids without a token.
        """
        ids = {first + i: name for i, name in enumerate(APPENDED[self.generation])}
        added = {int(i): token["content"] for i, token in self.settings.get(_ADDED, {}).items()}
        ids |= {i: name for i, name in added.items() if i >= first}
        if sorted(ids) != list(range(first, first + len(ids))):
            raise UserError(
                f"{self.file.with_name(CONFIG)}: {_ADDED} leaves gaps behind the {first} ids of "
                f"{self.file.name}: it names {', '.join(map(str, sorted(ids)))}"
            )
        return {ids[i]: i for i in sorted(ids)}

    def mark(self, folder: Path) -> None:
        """Say in ``folder`` that its tokenizer.json was made from this file and may be passed over for it."""
        made = {"generation": self.generation, FAST: fingerprint(folder / FAST), _ADDED: self.settings.get(_ADDED, {})}
        write_json(folder / CONFIG, read_json(folder / CONFIG) | {_MARK: made})

    def write(self, folder: Path) -> None:
        """Copy the file, and write a tokenizer_config.json that the official code reads.

        ChatGLM-6B's says that no image tokens come first: the ids are the new ones whatever the source said.
        """
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.file, folder / self.file.name)
        own = self.settings if "ChatGLM" in str(self.settings.get("tokenizer_class")) else _SETTINGS[self.generation]
        old = {"num_image_tokens": 0} if self.generation == "chatglm" else {}
        write_json(folder / CONFIG, {**own, **old})


def find(folder: Path) -> Release | None:
    """The official tokenizer that lies in ``folder``; None if what lies there is of another kind.

    ChatGLM2 and ChatGLM3 share one file. Where nothing tells them apart it is ChatGLM3's: four more control tokens, in
    rows that the embedding of both has, do no harm.

    Raises:
        UserError: tokenizer_config.json or config.json cannot be read.
    """
    settings, config = _read(folder / CONFIG), _read(folder / "config.json")
    if (folder / _TEMPLATE).is_file():
        settings["chat_template"] = (folder / _TEMPLATE).read_text(encoding="utf-8")
    if (folder / FAST).is_file():
        return _made(folder, settings)
    if (folder / _FIRST).is_file():
        return Release("chatglm", folder / _FIRST, settings)
    file = folder / _LATER
    if not (file.is_file() and (_says_glm(settings, config) or fingerprint(file) in _KNOWN)):
        return None
    with file.open("rb") as stream:
        ranks = _RANKS.match(stream.read(1024))
    if ranks:
        return Release("glm4", file, settings)
    return Release("chatglm3" if _has_roles(settings, config) else "chatglm2", file, settings)


def _made(folder: Path, settings: Mapping[str, Any]) -> Release | None:
    """The official file beside a tokenizer.json that was made from it and has not been changed since."""
    made = settings.get(_MARK, {})
    if made.get(FAST) != fingerprint(folder / FAST):
        return None
    file = folder / (_FIRST if made["generation"] == "chatglm" else _LATER)
    return Release(made["generation"], file, {**settings, _ADDED: made[_ADDED]}) if file.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold an object of settings, not {type(value).__name__}")
    return value


def _says_glm(settings: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    named = str(settings.get("tokenizer_class")).startswith("ChatGLM") or "[gMASK]" in json.dumps(settings)
    return named or config.get("model_type") == "chatglm"


def _has_roles(settings: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    if "<|user|>" in json.dumps(settings):
        return True
    names = f"{settings.get('name_or_path')} {config.get('_name_or_path')}".lower()
    return not ("chatglm2" in names and "chatglm3" not in names)


def _official(kind: str, **settings: Any) -> dict[str, Any]:
    auto_map = {"AutoTokenizer": [f"tokenization_chatglm.{kind}", None]}
    return {"remove_space": False, "do_lower_case": False, "tokenizer_class": kind, "auto_map": auto_map} | settings


_SETTINGS: Mapping[Generation, Mapping[str, Any]] = {
    "chatglm": _official(
        "ChatGLMTokenizer",
        **ROLES["chatglm"],
        end_token="</s>",
        gmask_token="[gMASK]",
        mask_token="[MASK]",
        num_image_tokens=0,
    ),
    # the name is all that tells these two apart
    "chatglm2": _official("ChatGLMTokenizer", name_or_path="THUDM/chatglm2-6b"),
    "chatglm3": _official("ChatGLMTokenizer", name_or_path="THUDM/chatglm3-6b"),
    "glm4": _official("ChatGLM4Tokenizer", **ROLES["glm4"], padding_side="left", clean_up_tokenization_spaces=False),
}
