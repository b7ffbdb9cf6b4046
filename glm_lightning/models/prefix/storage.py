"""A prefix on disk: our own folder, which stock PEFT reads too where it can; PEFT's; the official form."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from glm_lightning.files import read_json, write_json
from glm_lightning.models.prefix.attention import attach, encoder_of
from glm_lightning.models.prefix.encoder import PrefixEncoder
from glm_lightning.models.prefix.geometry import Geometry, attention_modules, is_latent
from glm_lightning.models.prefix.rotation import CHATGLM, can_rotate, rotated
from glm_lightning.types import UserError

TENSORS, ABOUT = "prefix_encoder.safetensors", "prefix_encoder.json"
FORMAT = 1

PEFT_FAMILIES = ("glm", "glm4", "glm4_moe", "llama", "qwen2", "qwen3")
"""Model types whose export to PEFT is tested."""

OFFICIAL_PREFIX = "transformer.prefix_encoder."
OFFICIAL_TENSORS, OFFICIAL_CONFIG = "pytorch_model.bin", "config.json"
OFFICIAL_DROPOUT = 0.1
"""Of THUDM's prefix encoder; no file says it."""


PEFT_TENSORS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def is_prefix(folder: str | Path) -> bool:
    """Whether ``folder`` holds a prefix that `load` reads."""
    return (Path(folder) / ABOUT).is_file() or is_official(folder) or _is_peft(folder)


def is_official(folder: str | Path) -> bool:
    """Whether ``folder`` is what THUDM's P-tuning scripts leave behind: a configuration with ``pre_seq_len``."""
    return (Path(folder) / OFFICIAL_TENSORS).is_file() and bool(_value(Path(folder) / OFFICIAL_CONFIG, "pre_seq_len"))


def _is_peft(folder: str | Path) -> bool:
    """Whether ``folder`` is an adapter of PEFT's prefix tuning, made by another tool."""
    ours = (Path(folder) / ABOUT).is_file()
    return not ours and _value(Path(folder) / PEFT_CONFIG, "peft_type") == "PREFIX_TUNING"


def _value(file: Path, key: str) -> Any:
    try:
        return read_json(file).get(key)
    except (OSError, json.JSONDecodeError, AttributeError):
        return None


def load(network: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Attach the prefix in ``folder`` to ``network``, which is changed and returned.

    Raises:
        UserError: there is none, it is torn, or it belongs to a network of other sizes.
    """
    encoder = read(Path(folder), Geometry.of(network)).to(network.device)
    if _is_peft(folder):
        if (why_not := why_not_peft(network)) is not None:
            raise UserError(f"{folder}: a prefix of PEFT cannot be put before {type(network).__name__}: {why_not}")
        # PEFT has rows begin at P
        encoder.set_layers(rotated(network, list(encoder().layers), by=-encoder.length))
    attach(network, encoder.train(network.training))
    return network


def read(folder: Path, geometry: Geometry) -> PrefixEncoder:
    """The encoder in ``folder`` for a network of these sizes: ours, an official one, or one of PEFT, as it lies there.

    Raises:
        UserError: there is none, it is torn, or it belongs to a network of other sizes.
    """
    if is_official(folder):
        state, dropout = _official(folder)
    else:
        state, dropout = _peft(folder) if _is_peft(folder) else _own(folder, geometry)
    width = state["trans.2.weight" if "trans.2.weight" in state else "embedding.weight"]
    width_there = width.shape[0] if "trans.2.weight" in state else width.shape[1]
    if width_there != geometry.width:
        raise UserError(
            f"{folder}: its prefix has {width_there} numbers a token, this network needs {geometry.width} "
            f"({geometry.num_layers} layers, {geometry.num_heads} key/value heads of {geometry.key_dim} and "
            f"{geometry.value_dim}); give the base that it was trained on"
        )
    length, embedding_dim = state["embedding.weight"].shape
    projection: dict[str, Any] = {}
    if "trans.2.weight" in state:
        projection = {"embedding_dim": embedding_dim, "projection_hidden": state["trans.0.weight"].shape[0]}
    dtype = state["embedding.weight"].dtype
    encoder = PrefixEncoder(geometry, length=length, dropout=dropout, dtype=dtype, **projection)
    encoder.load_state_dict(state)
    return encoder


def save(network: PreTrainedModel, folder: Path) -> None:
    """Write the attached prefix into ``folder``: bit-equal for `load`, and once more for stock PEFT where it can."""
    encoder = encoder_of(network)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()},
              folder / TENSORS)  # fmt: skip
    why_not = why_not_peft(network)
    about = {"format": FORMAT, "dropout": encoder.dropout, "geometry": asdict(encoder.geometry), "peft": why_not}
    write_json(folder / ABOUT, about)
    if why_not is None:
        _save_peft(network, folder)


def save_official(network: PreTrainedModel, folder: Path) -> None:
    """Write the attached prefix as THUDM's P-tuning scripts do, for the tools of ChatGLM-6B, ChatGLM2 and ChatGLM3.

    They read ``pytorch_model.bin``, a plain dictionary of tensors, and ``pre_seq_len`` and ``prefix_projection`` of the
    configuration beside it.
    """
    encoder = encoder_of(network)
    state = {OFFICIAL_PREFIX + name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items()}
    torch.save(state, folder / OFFICIAL_TENSORS)
    write_json(folder / OFFICIAL_CONFIG, {"pre_seq_len": encoder.length, "prefix_projection": encoder.projected})


def _own(folder: Path, geometry: Geometry) -> tuple[dict[str, Tensor], float]:
    try:
        about = read_json(folder / ABOUT)
        if about["format"] != FORMAT:
            raise UserError(f"{folder}: written in format {about['format']}, this release reads {FORMAT}")
        if about["geometry"] != asdict(geometry):
            raise UserError(
                f"{folder}: its prefix is for a network of {_words(about['geometry'])}, this one has "
                f"{_words(asdict(geometry))}; give the base that it was trained on"
            )
        return load_file(folder / TENSORS), about["dropout"]
    except (OSError, json.JSONDecodeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: holds no whole prefix of P-tuning v2 ({error!r})") from error


def _words(geometry: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in geometry.items())


def _official(folder: Path) -> tuple[dict[str, Tensor], float]:
    file = folder / OFFICIAL_TENSORS
    try:
        stored: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}); give the folder that the official script has left"
        ) from error
    # float32, in which the official script trains and runs the encoder
    state = {
        name.removeprefix(OFFICIAL_PREFIX): tensor.float()
        for name, tensor in stored.items()
        if name.startswith(OFFICIAL_PREFIX)
    }
    if "embedding.weight" not in state:
        raise UserError(f"{file}: holds no {OFFICIAL_PREFIX}embedding.weight; give a P-tuning v2 checkpoint")
    return state, OFFICIAL_DROPOUT


def _peft(folder: Path) -> tuple[dict[str, Tensor], float]:
    file = folder / PEFT_TENSORS
    try:
        return {"embedding.weight": load_file(file)["prompt_embeddings"].float()}, 0.0
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{file}: holds no whole prefix of PEFT ({error!r}); save it again with PEFT") from error


def why_not_peft(network: PreTrainedModel) -> str | None:
    """Why stock PEFT, which puts a prefix into the cache, cannot give the logits of ``network``; None where it can."""
    config = network.config
    if config.model_type == CHATGLM:
        return "PEFT has no prefix tuning for ChatGLM-6B, whose positions have two dimensions"
    if is_latent(attention_modules(network)[0]):
        return "its cache holds latents, from which keys and values are made behind it"
    if config.model_type not in PEFT_FAMILIES:
        return f"equal logits are not tested for model type {config.model_type!r}"
    if getattr(config, "sliding_window", None):
        return "in PEFT a prefix leaves the sliding window, here it stays in sight"
    if not can_rotate(network):
        return "its rotary frequencies change with the length of a row"
    return None


@torch.no_grad()
def _save_peft(network: PreTrainedModel, folder: Path) -> None:
    """PEFT's prefix-tuning adapter with the same logits.

    PEFT puts the prefix at the positions 0 to P - 1 of the cache and the row behind it, at P and on; here the row stays
    at 0. Attention sees differences of positions only, so keys that are turned by P give it what it saw.
    """
    from peft import PrefixTuningConfig

    encoder = encoder_of(network)
    sizes = encoder.geometry
    flat = PrefixEncoder(sizes, length=encoder.length, dtype=encoder.embedding.weight.dtype, device=network.device)
    flat.set_layers(rotated(network, list(encoder().layers), by=encoder.length))
    PrefixTuningConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=network.name_or_path,
        num_virtual_tokens=encoder.length,
        num_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        token_dim=sizes.num_heads * sizes.key_dim,
        num_transformer_submodules=1,
        inference_mode=True,
    ).save_pretrained(str(folder))
    tensors = {"prompt_embeddings": flat.embedding.weight.detach().cpu()}
    save_file(tensors, folder / PEFT_TENSORS, metadata={"format": "pt"})
