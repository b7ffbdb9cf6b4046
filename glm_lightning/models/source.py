"""Where a network comes from: a folder or a hub name, checked before any weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from glm_lightning.files import digest, read_json, sampled_fingerprint
from glm_lightning.types import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DEMO = "demo"
"""The name of the embedded model."""

WeightsDtype = Literal["auto", "float32", "float64", "bfloat16", "float16"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]


@dataclass(frozen=True)
class Source:
    """A pretrained network that can be loaded: the ``model`` node of the configuration.

    Args:
        path: a folder in Hugging Face layout, a name on the hub, or ``demo`` for the embedded model.
        revision: branch, tag or commit on the hub.
        dtype: the type the weights are held in; ``auto`` is the checkpoint's own.
        attention: the attention implementation of transformers.
        template: the chat template's name; ``auto`` recognises it (`glm_lightning.templates.find`).
        gradient_checkpointing: recompute activations in the backward pass: about a third slower, far less memory.
    """

    path: str
    revision: str | None = None
    dtype: WeightsDtype = "auto"
    attention: Attention = "sdpa"
    template: str = "auto"
    gradient_checkpointing: bool = False

    @cached_property
    def location(self) -> str:
        """What transformers is given: the embedded folder for ``demo``, else the path as it is."""
        if self.path == DEMO:
            return str(package_files("glm_lightning") / "demo" / "model")
        return str(Path(self.path).expanduser())

    @property
    def is_folder(self) -> bool:
        """Whether the network lies on this disk (and not on a hub)."""
        return Path(self.location).is_dir()

    @cached_property
    def config(self) -> PretrainedConfig:
        """The network's configuration.

        Raises:
            UserError: there is none, it is broken, or no native class can build it.
        """
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        raw = self._raw_config()
        try:
            config = AutoConfig.from_pretrained(self.location, revision=self.revision, trust_remote_code=False)
        except (OSError, ValueError, KeyError, StrictDataclassError) as error:
            raise UserError(_why_not(self.path, raw, error)) from error
        return cast("PretrainedConfig", config)

    def _raw_config(self) -> dict[str, Any]:
        """config.json of a folder as it stands; empty for a hub name (its check happens on loading)."""
        if not self.is_folder:
            if self.path.startswith((".", "/", "~")) or self.path.count("/") > 1:
                raise UserError(f"model.path is {self.path!r}: there is no such folder")
            return {}
        file = Path(self.location) / "config.json"
        try:
            raw = read_json(file)
        except FileNotFoundError:
            raise UserError(
                f"model.path is {self.path!r}: the folder has no config.json; "
                "give the folder that holds config.json and the weights"
            ) from None
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{error.lineno}: not valid JSON: {error.msg}") from error
        if not isinstance(raw, dict) or "model_type" not in raw:
            raise UserError(f"{file}: names no model_type; give a folder that save_pretrained has written")
        return raw

    def check(self) -> None:
        """Raise `UserError` for a network that cannot be loaded, from its configuration and the names of its files."""
        from transformers import AutoModelForCausalLM

        if type(self.config) not in AutoModelForCausalLM._model_mapping:
            raise UserError(
                f"model.path is {self.path!r}: its model type {self.config.model_type!r} is no causal language model; "
                "give a model that writes text, such as GlmForCausalLM"
            )
        if self.is_folder and not self._weights():
            raise UserError(f"model.path is {self.path!r}: the folder holds no weights (.safetensors or .bin files)")

    def _weights(self) -> list[Path]:
        return sorted(f for f in Path(self.location).iterdir() if f.suffix in {".safetensors", ".bin"})

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights: config, file names and sampled bytes of a folder; name and commit of a hub model."""
        if not self.is_folder:
            return digest(self.path, self.revision, getattr(self.config, "_commit_hash", None))
        # Neither where the folder lies nor which release of transformers reads it makes it another network.
        config = {k: v for k, v in self.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
        return digest(config, [(f.name, sampled_fingerprint(f)) for f in self._weights()])

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The network on the meta device: names and shapes, no weight is read."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return cast("PreTrainedModel", AutoModelForCausalLM.from_config(self.config))

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    def load(self, *, dtype: WeightsDtype = "auto") -> PreTrainedModel:
        """Load the network for training or inference; ``self.dtype`` wins over ``dtype`` unless it is ``auto``."""
        from transformers import AutoModelForCausalLM

        self.check()
        chosen = self.dtype if self.dtype != "auto" else dtype
        network = AutoModelForCausalLM.from_pretrained(
            self.location,
            revision=self.revision,
            config=self.config,
            dtype="auto" if chosen == "auto" else getattr(torch, chosen),
            attn_implementation=self.attention,
            trust_remote_code=False,
        )
        if self.gradient_checkpointing:
            network.activation_checkpointing_enable({"use_reentrant": False})
        return network


def _why_not(path: str, raw: dict[str, Any], error: Exception) -> str:
    from transformers import CONFIG_MAPPING

    if not raw:
        return f"model.path is {path!r}: neither a folder here nor a model that the hub gives: {error}"
    model_type = raw["model_type"]
    if model_type in CONFIG_MAPPING:
        return f"model.path is {path!r}: config.json does not fit model type {model_type!r}: {error}"
    if "auto_map" in raw:
        return (
            f"model.path is {path!r}: this folder asks for code of its own (auto_map in config.json, model type "
            f"{model_type!r}), which is never run; "
            "use a conversion to a native class, such as the -hf releases of GLM-4"
        )
    return f"model.path is {path!r}: transformers has no native class for model type {model_type!r}"
