"""Tokenizers in Hugging Face's format: `tokenizer.json`, or whatever transformers turns into its fast tokenizers."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from glm_lightning.files import digest
from glm_lightning.tokenizers.base import Tokenizer
from glm_lightning.types import UserError

VERSION = 2
"""Part of the fingerprint: to be raised when this file gives other ids for the same description."""

# Several published tokenizers do not mark their role tokens as special, though they are (`<｜User｜>`, `<|im_end|>`).
_CONTROL_SHAPE = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)


@final
class HuggingFaceTokenizer(Tokenizer):
    """A transformers fast tokenizer, with a second backend that knows no control tokens for encoding text as data."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf
        text = hf.backend_tokenizer.to_str()
        spec = json.loads(text)
        self._controls = _controls(spec, set(hf.all_special_tokens))
        self._control_ids = frozenset(self._controls.values())
        self._backend = Backend.from_str(json.dumps(_without_controls(spec, self._controls), ensure_ascii=False))
        self._fingerprint = digest(
            VERSION, text, sorted(self._controls.items()), hf.pad_token, hf.eos_token, hf.bos_token
        )

    @property
    def hf(self) -> Any:
        """The transformers fast tokenizer."""
        return self._hf

    @property
    def controls(self) -> Mapping[str, int]:
        """Name and id of every control token: what the files call special, and tokens of the shape `<|...|>`."""
        return self._controls

    @property
    def fingerprint(self) -> str:
        """Digest of the backend's whole description and of the tokens with a role."""
        return self._fingerprint

    @property
    def vocab_size(self) -> int:
        """Number of ids, as transformers counts them."""
        return len(self._hf)

    @property
    def pad_id(self) -> int:
        """Id of the pad token, else of the end token, else 0."""
        chosen = self._hf.pad_token_id if self._hf.pad_token_id is not None else self._hf.eos_token_id
        return int(chosen or 0)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as data; see `Tokenizer.encode`."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], *, control: bool = False) -> str:
        """Text of ``ids``, spaces untouched; see `Tokenizer.decode`."""
        kept = list(ids) if control else [i for i in ids if i not in self._control_ids]
        return str(self._hf.backend_tokenizer.decode(kept, skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and the chat template."""
        self._hf.save_pretrained(folder)

    def save_official(self, folder: Path) -> None:
        """There is no official file to write.

        Raises:
            UserError: always.
        """
        raise UserError(
            "tokenizer: it was not read from an official file (ice_text.model, tokenizer.model), so there is none to "
            f"write into {folder}; export in Hugging Face's layout, or start from the official release"
        )


def load(source: str | Path, *, revision: str | None = None) -> HuggingFaceTokenizer:
    """Read the tokenizer of a folder, or of a model by its hub name (and branch, tag or commit).

    Raises:
        UserError: there is none, it asks for remote code, or it has no fast form.
    """
    try:
        hf = AutoTokenizer.from_pretrained(str(source), revision=revision, trust_remote_code=False)
    except Exception as error:
        # transformers raises OSError, ValueError, KeyError, ImportError and backend errors here, by file and version
        raise UserError(
            f"tokenizer: cannot be loaded from {source}: {_first_line(error)}. Code from model folders is never run; "
            "point to a folder with tokenizer.json, such as save_pretrained writes"
        ) from error
    if not (isinstance(hf, PreTrainedTokenizerBase) and hf.is_fast):
        raise UserError(f"tokenizer: {source} has no fast tokenizer; convert it to tokenizer.json first")
    return HuggingFaceTokenizer(hf)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _controls(spec: dict[str, Any], named: set[str]) -> dict[str, int]:
    return {
        token["content"]: token["id"]
        for token in spec["added_tokens"]
        if token["special"] or token["content"] in named or _CONTROL_SHAPE.fullmatch(token["content"])
    }


def _without_controls(spec: dict[str, Any], controls: Mapping[str, int]) -> dict[str, Any]:
    """The description of the same tokenizer for which the names of control tokens are ordinary text."""
    pieces = _pieces(spec["model"])
    # The library numbers added tokens behind the pieces anew, whatever ids they have here: one that is left out would
    # move those behind it (`<think>` of GLM-4.5 to the id of `<|endoftext|>`). So it stays, under a name no text holds.
    added = [
        token | {"content": secrets.token_hex(16)} if token["content"] in controls else token
        for token in spec["added_tokens"]
        if token["content"] not in controls or token["content"] not in pieces
    ]
    spec = spec | {"added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
    return spec | {"model": _hidden(spec["model"], controls), "pre_tokenizer": _unprefixed(spec["pre_tokenizer"])}


def _pieces(model: dict[str, Any]) -> set[str]:
    return set(model["vocab"]) if isinstance(model["vocab"], dict) else {piece for piece, _ in model["vocab"]}


def _hidden(model: dict[str, Any], controls: Mapping[str, int]) -> dict[str, Any]:
    """Give control tokens that are also pieces of the model's vocabulary names that no text can hold.

    A unigram or word-level model would else find the piece `</s>` in text. The ids stay where they are.
    """
    pieces = _pieces(model)
    names = {name: secrets.token_hex(16) for name in controls if name in pieces and name != model.get("unk_token")}
    if not names:
        return model
    if isinstance(model["vocab"], list):
        return model | {"vocab": [[names.get(piece, piece), score] for piece, score in model["vocab"]]}
    hidden = model | {"vocab": {names.get(piece, piece): i for piece, i in model["vocab"].items()}}
    if "merges" in model:
        hidden["merges"] = [pair for pair in model["merges"] if not _makes(pair, names)]
    return hidden


def _makes(pair: list[str] | str, names: Mapping[str, str]) -> bool:
    left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
    return left in names or right in names or left + right in names


def _unprefixed(pre_tokenizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """Texts stand behind control tokens, where a `Metaspace` set to prefix only the first word adds nothing."""
    if pre_tokenizer is None:
        return None
    if pre_tokenizer["type"] == "Sequence":
        return pre_tokenizer | {"pretokenizers": [_unprefixed(each) for each in pre_tokenizer["pretokenizers"]]}
    if pre_tokenizer.get("prepend_scheme") == "first":
        return pre_tokenizer | {"prepend_scheme": "never"}
    return pre_tokenizer
