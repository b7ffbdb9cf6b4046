"""Prompt tuning: learned embeddings in front of every row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, cast, final

import torch
from peft import PeftModel, PromptEncoderConfig, PromptTuningConfig
from torch import nn
from transformers import PreTrainedModel

from glm_lightning.methods import adapters
from glm_lightning.methods.base import FSDP, Method
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.types import UserError

_FROM_IDS = ("chatglm",)
"""Families that find positions and mask by token ids, which a soft prompt has not."""


@final
class PromptTuning(Method):
    """Soft tokens in front of the embeddings (Lester et al. 2021, arXiv:2104.08691), by PEFT.

    With an encoder it is P-tuning (Liu et al. 2021, arXiv:2103.10385): a small network makes the soft tokens of learned
    embeddings; what is saved are the soft tokens alone.

    Args:
        ingredients: what every method is given.
        num_tokens: number of soft tokens; every row is that much longer.
        init: where they begin: at a ``text``, at the embeddings of random words (``vocabulary``), or anywhere
            (``random``), as with an encoder.
        init_text: that text; repeated where it is too short, then cut.
        encoder: ``none``, or P-tuning's ``mlp`` or ``lstm``.
        encoder_hidden: inner width of the encoder; None is the network's hidden size.
        encoder_dropout: share that the LSTM drops between its two layers.
    """

    trains_base = False
    artefact = "adapter"
    packs = False
    refused_strategies = dict.fromkeys(
        FSDP, "PEFT keeps soft tokens outside of the network that is sharded; use method=ptuning_v2, or trainer=ddp"
    )

    def __init__(
        self,
        ingredients: Ingredients,
        *,
        num_tokens: int = 32,
        init: Literal["text", "vocabulary", "random"] = "vocabulary",
        init_text: str | None = None,
        encoder: Literal["none", "mlp", "lstm"] = "none",
        encoder_hidden: int | None = None,
        encoder_dropout: float = 0.0,
    ) -> None:
        super().__init__(ingredients)
        self.num_tokens, self.init, self.init_text = num_tokens, init, init_text
        self.encoder, self.encoder_hidden, self.encoder_dropout = encoder, encoder_hidden, encoder_dropout
        if problems := list(self._wrong_values()):
            raise UserError(problems)

    def _wrong_values(self) -> Iterator[str]:
        if self.num_tokens < 1:
            yield f"method.num_tokens is {self.num_tokens}: must be 1 or more"
        if self.init == "text" and not (self.init_text or "").strip():
            yield "method.init is 'text' and method.init_text empty: give the text to begin with"
        if self.init != "text" and self.init_text is not None:
            yield f"method.init_text is set and method.init {self.init!r}: set method.init=text, or no text"
        if self.encoder != "none" and self.init == "text":
            yield f"method.encoder is {self.encoder!r}: an encoder begins at random; set method.init=random"
        if self.encoder_hidden is not None and (self.encoder == "none" or self.encoder_hidden < 1):
            yield f"method.encoder_hidden is {self.encoder_hidden}: must be 1 or more, with an encoder, or null"
        if not 0 <= self.encoder_dropout < 1 or (self.encoder_dropout and self.encoder != "lstm"):
            yield f"method.encoder_dropout is {self.encoder_dropout}: must be in [0, 1), and 0 without encoder=lstm"

    def check(self, skeleton: PreTrainedModel) -> None:
        """The network must take embeddings instead of ids."""
        family = skeleton.config.model_type
        if family in _FROM_IDS:
            raise UserError(
                f"method=prompt_tuning: a network of type {family!r} finds its positions and its mask by token ids, "
                "which soft tokens have not; use method=ptuning_v2, whose prefix needs neither"
            )

    def adapt(self, network: PreTrainedModel) -> nn.Module:
        """Freeze the base and put soft tokens in front of its embeddings."""
        hidden = network.config.get_text_config().hidden_size
        config = (
            PromptTuningConfig(
                num_virtual_tokens=self.num_tokens,
                prompt_tuning_init="SAMPLE_VOCAB" if self.init == "vocabulary" else "RANDOM",
                task_type="CAUSAL_LM",
            )
            if self.encoder == "none"
            else PromptEncoderConfig(
                num_virtual_tokens=self.num_tokens,
                encoder_reparameterization_type=self.encoder.upper(),
                encoder_hidden_size=self.encoder_hidden or hidden,
                encoder_dropout=self.encoder_dropout,
                task_type="CAUSAL_LM",
            )
        )
        adapted = cast(PeftModel, adapters.put_on(network, config))
        adapted.prompt_encoder.to(torch.promote_types(network.dtype, torch.float32))
        if self.init == "text":
            self._begin_at_text(adapted, network)
        return adapted

    def _begin_at_text(self, adapted: PeftModel, network: PreTrainedModel) -> None:
        assert self.ingredients.tokenizer is not None
        assert self.init_text is not None
        (ids,) = self.ingredients.tokenizer.encode([self.init_text])
        if len(ids) != self.num_tokens:
            how = "cut" if len(ids) > self.num_tokens else "repeated"
            self.notices.append(f"method.init_text has {len(ids)} tokens: {how} to the {self.num_tokens} soft ones")
        repeated = torch.tensor((ids * -(-self.num_tokens // len(ids)))[: self.num_tokens])
        soft = cast(nn.Embedding, adapted.get_submodule("prompt_encoder.default.embedding"))
        with torch.no_grad():
            soft.weight.copy_(network.get_input_embeddings()(repeated.to(network.device)))

    def without_adaptation(self) -> AbstractContextManager[None]:
        """No soft tokens."""
        return adapters.switched_off(self.network)

    def save(self, folder: Path) -> None:
        """Write PEFT's adapter folder; stock ``PeftModel.from_pretrained`` reads it."""
        adapters.write(self.network, folder)
