"""Rows of one network that are generated together, joining and leaving between two tokens."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast, final

import torch
from torch import Tensor

from glm_lightning.inference.batch_cache import BatchCache
from glm_lightning.inference.generation import unwrapped
from glm_lightning.inference.rows import Row, Token, choose
from glm_lightning.inference.soft_prompts import embedded, soft_prompt
from glm_lightning.models.chatglm import ChatGLMConfig
from glm_lightning.models.chatglm.positions import positions as chatglm_positions


@final
class Speaker:
    """A network, plain or adapted, as batches ask it: in evaluation mode, one forward pass at a time.

    A soft prompt in front of every row (PEFT's prompt tuning) and the two-dimensional positions of ChatGLM-6B are known
    here and nowhere else.
    """

    def __init__(self, network: Any, *, pad_id: int) -> None:
        assert not network.training
        self.base = unwrapped(network)
        self.config = self.base.config
        self.pad_id = pad_id
        self.soft = None if (soft := soft_prompt(network)) is None else soft.detach()
        self._is_two_dimensional = isinstance(self.config, ChatGLMConfig)
        self._takes = inspect.signature(self.base.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return cast(torch.device, self.base.device)

    @property
    def num_soft(self) -> int:
        """Places in front of each row that a soft prompt takes."""
        return 0 if self.soft is None else len(self.soft)

    @property
    def reads_in_pieces(self) -> bool:
        """Whether a prompt may be read piece by piece: not where its tokens see those behind them."""
        return not self._is_two_dimensional

    def positions(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Positions of padded prompts (B, T): the same shape, (B, 2, T) of ChatGLM-6B."""
        if self._is_two_dimensional:
            return chatglm_positions(input_ids, attention_mask, self.config)
        return (attention_mask.cumsum(-1) - 1).clamp(min=0)

    def following(self, positions: Tensor) -> Tensor:
        """The positions of the next tokens, of those of the last ones: (B, 1), or (B, 2, 1)."""
        last = positions[..., -1:]
        return last + torch.tensor([[0], [1]], device=last.device) if self._is_two_dimensional else last + 1

    @torch.no_grad()
    def logits(
        self,
        inputs: Tensor,
        *,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: BatchCache,
    ) -> Tensor:
        """Logits (B, V) in float32 behind the last of ``inputs``: ids (B, T), or embeddings (B, T, H)."""
        given: dict[str, Any] = {"input_ids" if inputs.ndim == 2 else "inputs_embeds": inputs}
        if "position_ids" in self._takes:
            given["position_ids"] = position_ids
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        output = self.base(attention_mask=attention_mask, cache=cache, use_cache=True, return_dict=True, **given)
        cache.advance(inputs.shape[1])
        return cast(Tensor, output.logits[:, -1].float())


@final
class Prefill:
    """Prompts that are being read together, at most ``piece`` columns at a time."""

    def __init__(self, speaker: Speaker, rows: Sequence[Row], *, piece: int) -> None:
        self.rows = list(rows)
        self._speaker = speaker
        prompts = [[speaker.pad_id] * speaker.num_soft + row.prompt_ids for row in rows]
        lengths = [len(prompt) for prompt in prompts]
        self._width, self._read = max(lengths), 0
        self._piece = piece if speaker.reads_in_pieces else self._width
        padded = [[speaker.pad_id] * (self._width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (self._width - length) + [1] * length for length in lengths]
        ids = torch.tensor(padded, device=speaker.device)
        self._mask = torch.tensor(mask, device=speaker.device)
        self._is_padded = min(lengths) < self._width
        self._positions = speaker.positions(ids, self._mask)
        self._inputs = ids if speaker.soft is None else embedded(speaker.base, speaker.soft, ids, self._mask)
        self.cache = BatchCache(speaker.config, lengths)

    @property
    def next_positions(self) -> Tensor:
        """Where the first tokens of the answers stand."""
        return self._speaker.following(self._positions)

    def step(self) -> Tensor | None:
        """Read a piece; behind the last one, the logits (B, V) of the first tokens."""
        piece = slice(self._read, min(self._read + self._piece, self._width))
        logits = self._speaker.logits(
            self._inputs[:, piece],
            attention_mask=self._mask[:, : piece.stop] if self._is_padded else None,
            position_ids=self._positions[..., piece],
            cache=self.cache,
        )
        self._read = piece.stop
        return logits if self._read == self._width else None


@final
class Batch:
    """Rows that get a token each at every step. One that has ended, or that nobody wants, leaves before the next."""

    def __init__(self, speaker: Speaker) -> None:
        self.rows: list[Row] = []
        self._speaker = speaker
        self._cache = BatchCache(speaker.config, [])
        self._tokens = torch.empty(0, 1, dtype=torch.long)
        self._positions = torch.empty(0)

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        return self._cache.num_bytes

    def join(self, prefill: Prefill, logits: Tensor) -> None:
        """Take rows whose prompts were read; ``logits`` (B, V) are those of their first tokens."""
        tokens = choose(logits, prefill.rows)
        is_first = not self.rows
        self.rows = self.rows + prefill.rows
        self._cache.join(prefill.cache)
        new, places = self._column(tokens), prefill.next_positions
        self._tokens = new if is_first else torch.cat([self._tokens, new])
        self._positions = places if is_first else torch.cat([self._positions, places])
        self._give([None] * (len(self.rows) - len(tokens)) + tokens, first=len(self.rows) - len(tokens))

    def step(self) -> None:
        """The next token of every row."""
        self._let_go([row for row, each in enumerate(self.rows) if each.is_gone])
        if not self.rows:
            return
        self._cache.grow()
        logits = self._speaker.logits(
            self._tokens, attention_mask=self._cache.mask(), position_ids=self._positions, cache=self._cache
        )
        tokens = choose(logits, self.rows)
        self._tokens, self._positions = self._column(tokens), self._speaker.following(self._positions)
        self._give(tokens, first=0)

    def _column(self, tokens: Sequence[Token | None]) -> Tensor:
        ids = [[self._speaker.pad_id if token is None else token.id] for token in tokens]
        return torch.tensor(ids, device=self._speaker.device)

    def _give(self, tokens: Sequence[Token | None], *, first: int) -> None:
        """Let the rows from ``first`` on hear their tokens; those that have ended leave."""
        ended = []
        for number in range(first, len(self.rows)):
            row, token = self.rows[number], tokens[number]
            if token is None:
                row.listener.fail(ArithmeticError("the network's logits are not finite"))
                self._cache.blank(number)
            if token is None or row.is_gone or not row.take(token):
                ended.append(number)
        self._let_go(ended)

    def _let_go(self, rows: Sequence[int]) -> None:
        if not rows:
            return
        order = self._cache.drop(set(rows))
        self.rows = [self.rows[row] for row in order]
        self._tokens, self._positions = self._tokens[order], self._positions[order]
