"""Where a network comes from: a folder or a hub name, checked before any weight is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from glm_lightning.files import digest, read_json, sampled_fingerprint
from glm_lightning.models import depth, families, hub, quantization
from glm_lightning.models.families import Generation
from glm_lightning.models.quantization import Quantize
from glm_lightning.models.quiet import without_load_report
from glm_lightning.types import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DEMO = "demo"
"""The name of the embedded model."""

WeightsDtype = Literal["auto", "float32", "float64", "bfloat16", "float16"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
Hub = Literal["huggingface", "modelscope"]

_FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
"""Stem and ending of weight files, the better first: where both lie, transformers reads that alone, and so do we."""

_NAMES = ", ".join(f"{stem}.{ending} or its index" for stem, ending in _FORMATS)


@dataclass(frozen=True)
class Source:
    """A pretrained network that can be loaded: the ``model`` node of the configuration.

    Args:
        path: a folder in Hugging Face layout or in an official one of the early generations, a name on a hub, or
            ``demo`` for the embedded model.
        hub: where names are looked up.
        revision: branch, tag or commit on the hub.
        dtype: the type the weights are held in; ``auto`` is the checkpoint's own.
        quantize: hold the linear layers in 4 bits (``nf4``, ``fp4``) or 8 (``int8``) instead, frozen.
        double_quantize: with 4 bits, quantise the scales of the blocks, too.
        compute_dtype: the type that quantised layers compute in; ``auto`` is that of the other weights.
        attention: the attention implementation of transformers.
        template: the chat template's name; ``auto`` recognises it (`glm_lightning.templates.find`).
        name_prefix: what names of runs and of fine-tuned models begin with, where the licence wants it.
        gradient_checkpointing: recompute activations in the backward pass: about a third slower, far less memory.
        compile: a run compiles the decoder layers (`models.compiling`).
        liger: a run on a GPU computes norms and gated activations by Liger's kernels (`models.liger`).
        num_layers: take only so many of its layers: a student to be taught; None is all.
        layers: which of them, if not all: the ``first``, or some ``spread`` over the depth (`models.depth`).
    """

    path: str
    hub: Hub = "huggingface"
    revision: str | None = None
    dtype: WeightsDtype = "auto"
    quantize: Quantize | None = None
    double_quantize: bool = True
    compute_dtype: WeightsDtype = "auto"
    attention: Attention = "sdpa"
    template: str = "auto"
    name_prefix: str = ""
    gradient_checkpointing: bool = False
    compile: bool = False
    liger: bool = False
    num_layers: int | None = None
    layers: depth.Which = "first"

    @cached_property
    def location(self) -> str:
        """Where configuration and tokenizer lie: a folder, or a name on Hugging Face's hub."""
        if self.path == DEMO:
            return str(package_files("glm_lightning") / "demo" / "model")
        if self.hub == "modelscope" and not self.is_folder:
            return str(hub.from_modelscope(self.path, revision=self.revision, weights=False))
        return str(Path(self.path).expanduser())

    @property
    def is_folder(self) -> bool:
        """Whether ``path`` is a folder (or the embedded model), and not a name on a hub."""
        return self.path == DEMO or Path(self.path).expanduser().is_dir()

    @cached_property
    def config(self) -> PretrainedConfig:
        """The network's configuration, always of a native class.

        Raises:
            UserError: there is none, it is broken, no native class can build it, or it has not so many layers.
        """
        whole = self._whole_config()
        return whole if self._numbers is None else depth.shortened(whole, self._numbers)

    @cached_property
    def _numbers(self) -> list[int] | None:
        """The layers that are taken; None: all."""
        if self.num_layers is None:
            return None
        return depth.numbers_of(self._whole_config(), self.num_layers, self.layers)

    def _whole_config(self) -> PretrainedConfig:
        """The configuration of all layers."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        raw = self.raw_config
        families.refuse_unknown(raw, path=self.path)
        try:
            if layout := families.layout(raw):
                return cast("PretrainedConfig", layout.config(raw))
            config = AutoConfig.from_pretrained(self.location, revision=self.revision, trust_remote_code=False)
        except UserError as error:
            raise UserError([f"model.path is {self.path!r}: {problem}" for problem in error.problems]) from None
        except (OSError, ValueError, KeyError, StrictDataclassError) as error:
            raise UserError(_why_not(self.path, raw, error)) from error
        return cast("PretrainedConfig", config)

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type of the weights on disk, as the configuration says."""
        return cast(torch.dtype, self.config.dtype or torch.float32)

    @property
    def generation(self) -> Generation | None:
        """The generation, of an official folder."""
        return families.generation(self.raw_config)

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        """config.json as it stands.

        Raises:
            UserError: there is none, or it is broken.
        """
        if not Path(self.location).is_dir():
            return self._raw_config_of_hub()
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

    def _raw_config_of_hub(self) -> dict[str, Any]:
        from transformers import PretrainedConfig

        if self.path.startswith((".", "/", "~")) or self.path.count("/") > 1:
            raise UserError(f"model.path is {self.path!r}: there is no such folder")
        try:
            raw, _ = PretrainedConfig.get_config_dict(self.location, revision=self.revision)
        except (OSError, ValueError) as error:
            raise UserError(
                f"model.path is {self.path!r}: neither a folder here nor a model that the hub gives: {error}"
            ) from error
        return dict(raw)

    def changed(self, **changes: Any) -> Source:
        """The same network with other knobs; what is known of its configuration goes with it."""
        made = replace(self, **changes)
        kept = ("raw_config", "config") if made.num_layers == self.num_layers else ("raw_config",)
        vars(made).update({name: vars(self)[name] for name in kept if name in vars(self)})
        return made

    def check(self) -> None:
        """Raise `UserError` for a network that cannot be loaded, from its configuration and the names of its files."""
        from transformers import AutoModelForCausalLM

        if type(self.config) not in AutoModelForCausalLM._model_mapping:
            raise UserError(
                f"model.path is {self.path!r}: its model type {self.config.model_type!r} is no causal language model; "
                "give a model that writes text, such as GlmForCausalLM"
            )
        if self.is_folder and not self._weights():
            raise UserError(f"model.path is {self.path!r}: the folder holds no weights ({_NAMES})")

    def weight_files(self) -> list[Path]:
        """The files that hold the weights: one, or the shards that an index names; a hub's are downloaded.

        Raises:
            UserError: there are none, or some are missing.
        """
        location = self._weights_location()
        if not Path(location).is_dir():
            location = str(hub.from_huggingface(location, revision=self.revision))
        if files := self._weights(location):
            return files
        raise UserError(f"model.path is {self.path!r}: holds no weights ({_NAMES})")

    def _weights(self, location: str | None = None) -> list[Path]:
        for stem, ending in _FORMATS:
            whole = Path(location or self.location) / f"{stem}.{ending}"
            index = whole.with_name(f"{whole.name}.index.json")
            if whole.is_file():
                return [whole]
            if index.is_file():
                return self._shards(index)
        return []

    def _shards(self, index: Path) -> list[Path]:
        try:
            shards = sorted({index.with_name(name) for name in read_json(index)["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: is no index of weights ({error!r}); download it again") from error
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            raise UserError(
                f"model.path is {self.path!r}: {len(missing)} of {len(shards)} files of weights are missing: "
                f"{_some(missing)}; download them again"
            )
        return shards

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights: config, file names and sampled bytes of a folder; name and commit of a hub model."""
        if not self.is_folder:
            return digest(self.hub, self.path, self.revision, self.raw_config.get("_commit_hash"), *self._cut)
        # Neither where the folder lies nor which release of transformers wrote it makes it another network.
        config = {k: v for k, v in self.raw_config.items() if k not in ("_name_or_path", "transformers_version")}
        named = [(f.name, sampled_fingerprint(f)) for f in self._weights()]
        return digest(config, named, *self._cut)

    @property
    def _cut(self) -> list[Any]:
        """What names the layers that are taken, if not all."""
        if self.num_layers is None:
            return []
        return [self.num_layers] if self.layers == "first" else [self.num_layers, self.layers]

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

    def load(self, *, dtype: WeightsDtype = "auto", device: str | None = None) -> PreTrainedModel:
        """Load the network for training or inference; ``self.dtype`` wins over ``dtype`` unless it is ``auto``.

        ``device`` is where weights are quantised and stay; None is torch's default device, which Lightning sets to
        that of the run. Weights that are not quantised come to the default device.

        Raises:
            UserError: the files lack weights of the network, or hold some of another shape or of another network.
        """
        from transformers import AutoModelForCausalLM

        self.check()
        chosen = self.dtype if self.dtype != "auto" else dtype
        torch_dtype = self.stored_dtype if chosen == "auto" else getattr(torch, chosen)
        layout = families.layout(self.raw_config)
        reader: Any = AutoModelForCausalLM if layout is None else layout.READER
        # transformers leaves out layers behind the last one; others are read with all and then left out
        is_cut_behind = self.layers == "first"
        with without_load_report():
            network, report = reader.from_pretrained(
                self._weights_location(),
                revision=self.revision,
                config=self.config if is_cut_behind else self._whole_config(),
                dtype=torch_dtype,
                attn_implementation=self.attention,
                quantization_config=self._quantization(torch_dtype),
                # transformers' own choice would be a GPU, in a run on the CPU as well
                device_map={"": device or torch.get_default_device()} if self.quantize is not None else None,
                trust_remote_code=False,
                # `_faults` refuses those with a clearer message
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        if problems := list(_faults(report, num_layers=self.num_layers if is_cut_behind else None)):
            raise UserError([f"model.path is {self.path!r}: {problem}" for problem in problems])
        if layout is not None:
            network = layout.native(network)
        if self._numbers is not None and not is_cut_behind:
            depth.keep(network, self._numbers)
            self._refuse_other_kinds(network)
        settle_sampling(network.generation_config)
        if self.quantize is not None:
            quantization.keep_trainable(network)
        if self.gradient_checkpointing:
            network.activation_checkpointing_enable({"use_reentrant": False})
        return cast("PreTrainedModel", network)

    def _refuse_other_kinds(self, network: PreTrainedModel) -> None:
        """Raise `UserError` if the layers that were kept are not of the kinds that their configuration now says."""
        there = {name for name, _ in network.named_parameters()}
        if wrong := sorted(there ^ {name for name, _ in self.skeleton.named_parameters()}):
            raise UserError(
                f"model.layers is {self.layers}: layers of this network are of several kinds, told by their place "
                f"({_some(wrong)}), which they would change; set model.layers=first"
            )

    def _weights_location(self) -> str:
        if self.hub == "modelscope" and not self.is_folder:
            return str(hub.from_modelscope(self.path, revision=self.revision, weights=True))
        return self.location

    def _quantization(self, dtype: torch.dtype) -> Any:
        if self.quantize is None:
            return None
        compute = dtype if self.compute_dtype == "auto" else getattr(torch, self.compute_dtype)
        return quantization.settings(self.quantize, double=self.double_quantize, compute_dtype=compute)


def settle_sampling(config: Any) -> None:
    """Say that sampling flags mean sampling, which some releases leave out; else nothing could be saved.

    ``config`` is a `GenerationConfig`.
    """
    if any(value not in (None, neutral) for value, neutral in ((config.temperature, 1.0), (config.top_p, 1.0))):
        config.do_sample = True


def _faults(report: Any, *, num_layers: int | None) -> Iterator[str]:
    """What transformers would fill with random numbers, or leave out; not the layers that were not asked for."""
    if missing := sorted(report["missing_keys"]):
        yield f"the files lack {len(missing)} weights of the network: {_some(missing)}; download them again"
    if wrong := sorted(report["mismatched_keys"]):
        shapes = [f"{name} {tuple(found)} for {tuple(wanted)}" for name, found, wanted in wrong]
        yield f"weights of another shape than config.json says: {_some(shapes)}; give the config.json that belongs here"
    numbered = {name: re.search(r"\.(\d+)\.", name) for name in report["unexpected_keys"]}
    cut = {name for name, found in numbered.items() if num_layers is not None and found and int(found[1]) >= num_layers}
    if surplus := sorted(numbered.keys() - cut):
        yield (
            f"the files hold {len(surplus)} weights that the network of config.json lacks: {_some(surplus)}; "
            "give the config.json that belongs here, or files without them"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _why_not(path: str, raw: dict[str, Any], error: Exception) -> str:
    from transformers import CONFIG_MAPPING

    model_type = raw.get("model_type")
    if model_type in CONFIG_MAPPING:
        return f"model.path is {path!r}: config.json does not fit model type {model_type!r}: {error}"
    if "auto_map" in raw:
        return (
            f"model.path is {path!r}: this folder asks for code of its own (auto_map in config.json, model type "
            f"{model_type!r}), which is never run; use a release in transformers' own layout"
        )
    return f"model.path is {path!r}: transformers has no native class for model type {model_type!r}"
