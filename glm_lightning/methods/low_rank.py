"""The knobs of a low-rank update, checked against a network and told to PEFT."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel

from glm_lightning.methods import layers
from glm_lightning.methods.adapters import put_on
from glm_lightning.methods.fused import fuse
from glm_lightning.methods.splitting import SPLITTING, splits
from glm_lightning.models.quantization import Quantize
from glm_lightning.types import UserError

STARTS = rf"default|gaussian|orthogonal|{SPLITTING}"

_NEED_DATA = ("eva", "corda", "lora_ga")


@dataclass(frozen=True)
class LowRank:
    """W x + (alpha / rank) B A x; the fields are those of the classes that use it.

    Raises:
        UserError: a value is outside its range, or two do not go together.
    """

    rank: int
    alpha: float
    dropout: float
    targets: str | list[str]
    experts: bool
    rslora: bool
    dora: bool
    init: str
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    extra_modules: list[str]

    def __post_init__(self) -> None:
        if problems := [*self._wrong_values(), *self._wrong_expressions(), *self._wrong_init(), *self._wrong_pairs()]:
            raise UserError(problems)

    def _wrong_values(self) -> Iterator[str]:
        if self.rank < 1:
            yield f"method.rank is {self.rank}: must be 1 or more"
        if self.alpha <= 0:
            yield f"method.alpha is {self.alpha}: must be above 0"
        if not 0 <= self.dropout < 1:
            yield f"method.dropout is {self.dropout}: must be in [0, 1)"
        if not self.targets and not self.experts:
            yield f"method.targets is empty: give one of {', '.join(layers.PRESETS)}, or names of linear layers"
        for pattern, rank in self.rank_pattern.items():
            if rank < 1:
                yield f"method.rank_pattern gives {pattern!r} {rank}: must be 1 or more"
        for pattern, alpha in self.alpha_pattern.items():
            if alpha <= 0:
                yield f"method.alpha_pattern gives {pattern!r} {alpha}: must be above 0"

    def _wrong_expressions(self) -> Iterator[str]:
        for key in ("rank_pattern", "alpha_pattern", "extra_modules"):
            for pattern in getattr(self, key):
                try:
                    re.compile(pattern)
                except re.error as error:
                    yield f"method.{key} holds {pattern!r}: no regular expression: {error}"

    def _wrong_init(self) -> Iterator[str]:
        if self.init in _NEED_DATA:
            yield f"method.init is {self.init!r}: it needs data before there is a run; use pissa or default"
        elif self.init == "loftq":
            yield "method.init is 'loftq': it quantises the base in its own way; use method=qlora with init=default"
        elif not re.fullmatch(STARTS, self.init):
            yield (
                f"method.init is {self.init!r}: must be default, gaussian, orthogonal, olora, pissa, or "
                "pissa_niter_N for N rounds of the fast decomposition"
            )

    def _wrong_pairs(self) -> Iterator[str]:
        odd = sorted({rank for rank in (self.rank, *self.rank_pattern.values()) if rank % 2})
        if self.init == "orthogonal" and odd:
            yield f"method.init is 'orthogonal': ranks must be even, not {', '.join(map(str, odd))}"
        if self.experts and self.dropout:
            yield f"method.experts is true and method.dropout {self.dropout}: experts take none; set dropout=0"
        if self.experts and self.dora:
            yield "method.experts and method.dora are both true: PEFT has no DoRA for experts; set dora=false"
        if self.experts and self.init not in ("default", "gaussian"):
            yield f"method.experts is true and method.init {self.init!r}: experts take default or gaussian"
        if self.splits and self.dora:
            yield f"method.init is {self.init!r} and method.dora true: PEFT cannot write them as one adapter"
        if self.splits and self.extra_modules:
            yield f"method.init is {self.init!r}: method.extra_modules do not go with it; use init=default"
        if self.splits and self.rslora and (self.rank_pattern or self.alpha_pattern):
            yield f"method.init is {self.init!r}: patterns together with rslora=true do not go with it"

    @property
    def splits(self) -> bool:
        """Whether the base's weights lose what the update begins with."""
        return splits(self.init)

    def problems(self, skeleton: PreTrainedModel, quantize: Quantize | None) -> Iterator[str]:
        """What does not fit ``skeleton`` (on the meta device)."""
        wrong = layers.problems("method.targets", self.targets, skeleton) if self.targets else []
        yield from wrong
        if wrong and isinstance(self.targets, str):
            return  # what is adapted is not known
        yield from self._rank_problems(skeleton)
        yield from self._pattern_problems(skeleton)
        yield from self._module_problems(skeleton, quantize)
        yield from self._by_parameter_problems(skeleton)
        if self.experts and not layers.experts(skeleton):
            yield "method.experts is true: this network has no experts; set it to false"
        if self.splits and quantize is not None:
            yield (
                f"method.init is {self.init!r}: it changes the base's weights, which quantize={quantize} has rounded; "
                "use init=default"
            )

    def _by_parameter_problems(self, skeleton: PreTrainedModel) -> Iterator[str]:
        by_parameter = layers.taken_for_experts(self._adapted(skeleton), skeleton)
        why = f"PEFT adapts {', '.join(by_parameter)} by parameter in a mixture of experts"
        if by_parameter and self.dropout:
            yield f"method.dropout is {self.dropout}: {why}, which takes none; set dropout=0, or targets=attention"
        if by_parameter and self.dora:
            yield f"method.dora is true: {why}, without DoRA; set dora=false, or targets=attention"
        if by_parameter and self.init not in ("default", "gaussian"):
            yield f"method.init is {self.init!r}: {why}; set init=default, or targets=attention"

    def _rank_problems(self, skeleton: PreTrainedModel) -> Iterator[str]:
        """A matrix has no rank above its smaller side: what is above that in every layer takes memory and is no use."""
        sides = [min(skeleton.get_parameter(f"{name}.weight").shape) for name in self._adapted(skeleton)]
        most = max(sides, default=self.rank)
        if self.rank > most:
            yield f"method.rank is {self.rank}: the layers that are adapted have ranks of {most} at most; lower it"

    def _pattern_problems(self, skeleton: PreTrainedModel) -> Iterator[str]:
        adapted = [*self._adapted(skeleton), *(layers.experts(skeleton) if self.experts else ())]
        for key, patterns in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            for pattern in patterns:
                if not any(get_pattern_key([pattern], name) == pattern for name in adapted):
                    yield f"method.{key} holds {pattern!r}: matches no layer that is adapted"

    def _adapted(self, skeleton: PreTrainedModel) -> list[str]:
        names = layers.linear(skeleton)
        if self.targets == layers.ALL:
            head = skeleton.get_output_embeddings()
            return [name for name in names if skeleton.get_submodule(name) is not head]
        return layers.matched(layers.resolved(self.targets, skeleton), names) if self.targets else []

    def _module_problems(self, skeleton: PreTrainedModel, quantize: Quantize | None) -> Iterator[str]:
        adapted = set(self._adapted(skeleton))
        frozen = set(layers.linear(skeleton)) if quantize else set()
        head = skeleton.get_output_embeddings()
        for name in self.extra_modules:
            found = layers.modules(name, skeleton)
            inside = {f"{path}.{child}".rstrip(".") for path, m in found.items() for child, _ in m.named_modules()}
            if not any(True for module in found.values() for _ in module.parameters()):
                there = layers.with_weights(skeleton)
                yield f"method.extra_modules holds {name!r}: no module with weights is called so; there are {there}"
            elif both := sorted(inside & adapted):
                yield f"method.extra_modules holds {name!r}: {both[0]} is adapted already; take it out of one of them"
            elif _torn_apart(found.values(), skeleton):
                yield (
                    f"method.extra_modules holds {name!r}: PEFT does not keep embedding and output layer one "
                    "matrix in this network; take it out, or use method=freeze, whose embeddings=true does"
                )
            elif held := [n for n in sorted(inside & frozen) if skeleton.get_submodule(n) is not head]:
                yield f"method.extra_modules holds {name!r}: quantize={quantize} has frozen {held[0]}"

    def adapt(self, network: PreTrainedModel) -> tuple[PreTrainedModel, list[str]]:
        """``network`` with the update on it, and what the user shall be told."""
        notices = []
        experts = layers.experts(network)
        if experts and not self.experts:
            passed = sum(parameter.numel() for parameter in experts.values())
            notices.append(
                f"the experts, {passed / sum(p.numel() for p in network.parameters()):.0%} of the parameters, are no "
                "linear layers and stay as they are; method.experts=true adapts them, too"
            )
        adapted = put_on(network, self._config(network))
        fuse(adapted)
        return adapted, notices  # type: ignore[return-value]

    def _config(self, network: PreTrainedModel) -> LoraConfig:
        extra = [module for name in self.extra_modules for module in layers.modules(name, network).values()]
        modules, parameters = self._targets(network)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=modules,
            target_parameters=parameters or None,
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights=True if self.init == "default" or self.splits else self.init,  # type: ignore[arg-type]
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            modules_to_save=[n for name in self.extra_modules for n in _for_peft(name, network)] or None,
            # Where embedding and head are one matrix, they stay one.
            ensure_weight_tying=_tied_in(extra, network),
            task_type="CAUSAL_LM",
        )

    def _targets(self, network: PreTrainedModel) -> tuple[str | list[str], list[str]]:
        """What PEFT adapts by module and what by parameter."""
        adapted = self._adapted(network)
        by_parameter = layers.taken_for_experts(adapted, network)
        experts = layers.expert_names(network) if self.experts else []
        if not layers.experts(network):
            return layers.resolved(self.targets, network), experts
        modules = [name for name in layers.endings(adapted) if name not in by_parameter]
        return modules, [f"{name}.weight" for name in by_parameter] + experts


def _for_peft(name: str, network: PreTrainedModel) -> list[str]:
    """``name``, or the whole names of what it stands for where PEFT, which compares ends of texts, finds others."""
    found = layers.modules(name, network)
    ending = {path for path, _ in network.named_modules() if path.endswith(name)}
    return [name] if ending == found.keys() else sorted(found)


def _tied_in(modules: Iterable[nn.Module], network: PreTrainedModel) -> bool:
    """Whether an embedding or output layer that are one matrix is among ``modules``."""
    both = (network.get_input_embeddings(), network.get_output_embeddings())
    return bool(network.config.get_text_config().tie_word_embeddings) and any(m is one for m in modules for one in both)


def _torn_apart(modules: Iterable[nn.Module], network: PreTrainedModel) -> bool:
    """Whether PEFT would make two matrices of one: it knows it by the name of the embedding."""
    embedding = network.get_input_embeddings()
    name = next(name for name, module in network.named_modules() if module is embedding)
    return _tied_in(modules, network) and not name.endswith("embed_tokens")


def faster(ratio: float) -> Callable[[str], float] | None:
    """Factor on the learning rate by name: ``ratio`` for B, 1 for A (LoRA+, Hayou et al. 2024, arXiv:2402.12354)."""
    if ratio <= 0:
        raise UserError(f"method.lr_ratio is {ratio}: must be above 0")
    return None if ratio == 1 else lambda name: ratio if ".lora_B." in name else 1.0
