"""P-tuning v2: a learned prefix of keys and values at every layer of a frozen network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast, final

import torch
from torch import nn
from transformers import PreTrainedModel

from glm_lightning.methods.base import Method
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.models import prefix
from glm_lightning.models.prefix import Geometry, PrefixEncoder
from glm_lightning.types import UserError


@final
class PTuningV2(Method):
    """Keys and values in front of those of the row, at every layer (Liu et al. 2021, arXiv:2110.07602).

    Every token sees the prefix, and positions of real tokens do not shift. The prefix is held in float32 and cast to
    the type of the network's own keys where they meet.

    Args:
        ingredients: what every method is given.
        prefix_length: number of prefix tokens; 128 in the official recipes.
        projection: learn an embedding and two linear layers that make the keys and values, instead of themselves.
        projection_hidden: inner width of the projection; None is the network's hidden size, as in the official code.
        dropout: share of the prefix's numbers dropped while training.
        init: what the prefix starts as: the keys and values of random tokens (``vocabulary``) or of a ``text``, with
            which the network starts as its base does with these ``prefix_length`` tokens in front of each row; or
            ``random`` numbers, as officially.
        init_text: that text; repeated where it is too short, then cut.
        init_std: standard deviation of the random numbers; 1 in the official code.
        init_from: folder of an adapter or of an official P-tuning v2 checkpoint to go on from.
    """

    trains_base = False
    artefact = "adapter"

    def __init__(
        self,
        ingredients: Ingredients,
        *,
        prefix_length: int = 128,
        projection: bool = False,
        projection_hidden: int | None = None,
        dropout: float = 0.1,
        init: Literal["vocabulary", "text", "random"] = "vocabulary",
        init_text: str | None = None,
        init_std: float = 1.0,
        init_from: str | None = None,
    ) -> None:
        super().__init__(ingredients)
        self._length = prefix_length
        self._projection = projection
        self._projection_hidden = projection_hidden
        self._dropout = dropout
        self._init, self._text, self._std = init, init_text, init_std
        self._from = None if init_from is None else Path(init_from).expanduser()
        problems = [*self._out_of_range(), *self._contradictions()]
        if problems:
            raise UserError(problems)

    def _out_of_range(self) -> list[str]:
        hidden = self._projection_hidden
        rules = (
            ("prefix_length", self._length, "1 or more", self._length >= 1),
            ("projection_hidden", hidden, "1 or more, or null", hidden is None or hidden >= 1),
            ("dropout", self._dropout, "in [0, 1)", 0 <= self._dropout < 1),
            ("init_std", self._std, "above 0: equal prefix tokens would stay equal", self._std > 0),
        )
        return [f"method.{key} is {value}: must be {rule}" for key, value, rule, fine in rules if not fine]

    def _contradictions(self) -> list[str]:
        problems = []
        if (self._init == "text") != bool((self._text or "").strip()):
            problems.append(
                f"method.init is {self._init!r} and method.init_text {self._text!r}: give init=text with the text to "
                "begin with, or neither"
            )
        if self._projection and self._init != "random" and self._from is None:
            problems.append(f"method.init is {self._init!r}: a projection begins at random; set method.init=random")
        if self._init == "text" and self._from is not None:
            problems.append("method.init is 'text' and method.init_from set: a prefix starts from one; unset one")
        if self._projection_hidden is not None and not self._projection:
            problems.append("method.projection_hidden is set: there is no projection; set method.projection=true")
        if self._from is not None and not prefix.is_prefix(self._from):
            problems.append(
                f"method.init_from is {str(self._from)!r}: holds no prefix; give the adapter folder of a P-tuning v2 "
                "run, or an official checkpoint (pytorch_model.bin, and config.json with pre_seq_len)"
            )
        return problems

    def check(self, skeleton: PreTrainedModel) -> None:
        """Every layer's attention must take a prefix, and one that is gone on from must be of the size asked for."""
        geometry = Geometry.of(skeleton)
        if self._from is not None:
            self._check_stored(self._from, geometry)

    def adapt(self, network: PreTrainedModel) -> nn.Module:
        """Freeze the base and attach the prefix; the network stays the same object."""
        network.requires_grad_(False)
        geometry = Geometry.of(network)
        if self._from is None:
            prefix.attach(network, self._random(network, geometry))
        else:
            prefix.load(network, self._from)
        encoder = prefix.encoder_of(network)
        encoder.dropout = self._dropout
        # a network on the meta device has no keys and values to begin at
        if self._init != "random" and self._from is None and network.device.type != "meta":
            encoder.set_layers(prefix.layers_of_text(network, self._first_ids(network)))
        if (why_not := prefix.why_not_peft(network)) is not None:
            self.notices.append(f"the adapter will be in this project's form only, which PEFT does not read: {why_not}")
        return network

    def _random(self, network: PreTrainedModel, geometry: Geometry) -> PrefixEncoder:
        hidden = network.config.get_text_config().hidden_size
        # as officially: ChatGLM-6B projects from the hidden size, its successors from the size of the prefix itself
        embedding_dim = hidden if network.config.model_type == "chatglm" else geometry.width
        encoder = PrefixEncoder(
            geometry,
            length=self._length,
            embedding_dim=embedding_dim if self._projection else None,
            projection_hidden=(self._projection_hidden or hidden) if self._projection else 0,
            dtype=torch.promote_types(network.dtype, torch.float32),
            device="meta" if network.device.type == "meta" else "cpu",
        )
        nn.init.normal_(encoder.embedding.weight, std=self._std)
        return encoder.to(network.device)

    def _check_stored(self, folder: Path, geometry: Geometry) -> None:
        encoder = prefix.read(folder, geometry)
        if (encoder.length, encoder.projected) != (self._length, self._projection):
            raise UserError(
                f"method.init_from is {str(folder)!r}: its prefix has {encoder.length} tokens and "
                f"{'a' if encoder.projected else 'no'} projection; give "
                f"method.prefix_length={encoder.length} method.projection={str(encoder.projected).lower()}"
            )

    def _first_ids(self, network: PreTrainedModel) -> torch.Tensor:
        if self._text is None:
            return torch.randint(network.config.get_text_config().vocab_size, (self._length,))
        assert self.ingredients.tokenizer is not None
        (ids,) = self.ingredients.tokenizer.encode([self._text])
        if len(ids) != self._length:
            how = "cut" if len(ids) > self._length else "repeated"
            self.notices.append(f"method.init_text has {len(ids)} tokens: {how} to the prefix's {self._length}")
        repeats = -(-self._length // len(ids))
        return torch.tensor((ids * repeats)[: self._length])

    @contextlib.contextmanager
    def without_adaptation(self) -> Iterator[None]:
        """No prefix: the same weights, no second copy."""
        encoder = prefix.encoder_of(cast(PreTrainedModel, self.network))
        encoder.enabled = False
        try:
            yield
        finally:
            encoder.enabled = True

    def save(self, folder: Path) -> None:
        """Write our own form, bit-equal, and PEFT's wherever PEFT can give the same logits."""
        prefix.save(cast(PreTrainedModel, self.network), folder)
