"""Token ids in, token ids or text out: batched for evaluation, piece by piece for a conversation."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.distributed.fsdp import is_fsdp_managed_module

from glm_lightning.inference.sampling import GREEDY, Chooser, Sampling
from glm_lightning.inference.soft_prompts import embedded, soft_prompt
from glm_lightning.models.modes import evaluating
from glm_lightning.types import UserError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said: ids without the stop token, and that token, None if ``max_new_tokens`` came before one."""

    ids: list[int]
    stop: int | None

    @property
    def finished(self) -> bool:
        """Whether it ended by itself."""
        return self.stop is not None


def generate(
    network: Any,
    prompts: Sequence[list[int]],
    *,
    stop_ids: Collection[int],
    pad_id: int,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answer every prompt, in the order of the prompts; ``network`` is a transformers or a PEFT model.

    In float32 an answer does not depend on the batches; what a prompt draws depends on the seed and its place only.
    ``progress`` is called with the number of prompts answered since its last call.

    Raises:
        UserError: a prompt is as long as the network's context or longer.
    """
    answers: dict[int, Answer] = {}
    for rows in batches([len(prompt) for prompt in prompts], batch_size):
        found = answer(
            network,
            [prompts[row] for row in rows],
            draws=rows,
            stop_ids=stop_ids,
            pad_id=pad_id,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            progress=progress,
        )
        answers.update(zip(rows, found, strict=True))
    return [answers[row] for row in range(len(prompts))]


def batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Places of the prompts that are answered together.

    Longest first: what does not fit into memory fails at once; neighbours in length share a batch, little is padding.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def answer(
    network: Any,
    prompts: Sequence[list[int]],
    *,
    draws: Sequence[int],
    stop_ids: Collection[int],
    pad_id: int,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answer one batch of prompts; ``draws`` are the numbers by which each draws its own, see `Chooser`."""
    said: list[list[int]] = [[] for _ in prompts]
    going = len(prompts)
    limits = _limits(network, prompts, max_new_tokens)
    choose = Chooser(sampling, draws, network.device)
    with evaluating(network):
        for tokens in _steps(network, prompts, choose=choose, stop_ids=stop_ids, pad_id=pad_id, limits=limits):
            if progress and len(tokens) < going:
                progress(going - len(tokens))
            going = len(tokens)
            for row, token in tokens.items():
                said[row].append(token)
    if progress and going:
        progress(going)
    return [_answer(ids, stop_ids) for ids in said]


def stream(
    network: Any,
    prompt_ids: list[int],
    *,
    tokenizer_decode: Callable[[list[int]], str],
    stop_ids: Collection[int],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    draw: int = 0,
) -> Iterator[str]:
    """Yield the answer to one prompt as text, in pieces that are whole characters and together the whole answer.

    Ends before the first stop token. ``draw`` is the number by which it draws its own, see `Chooser`: 0 is what
    `generate` gives for its first prompt.
    """
    limits = _limits(network, [prompt_ids], max_new_tokens)
    choose = Chooser(sampling, [draw], network.device)
    steps = _steps(network, [prompt_ids], choose=choose, stop_ids=stop_ids, pad_id=0, limits=limits)
    yield from pieces((step[0] for step in steps if step[0] not in stop_ids), tokenizer_decode)


def pieces(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """The text of ``tokens`` as they come, in whole characters: put together it is ``decode`` of all of them."""
    text = Pieces(decode)
    yield from filter(None, map(text.add, tokens))
    yield from filter(None, [text.rest()])


@final
class Pieces:
    """Text of tokens that come one by one, in whole characters: put together it is ``decode`` of all of them."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # Decoding restarts one piece back: a leading space that tokenizers drop is dropped in both texts alike.
        self._known = self._shown = 0

    def add(self, token: int) -> str:
        """What can be shown with one more token; nothing while a character is not whole."""
        self._ids.append(token)
        piece, shown = self._new(), self._shown
        if not piece or piece.endswith(_REPLACEMENT):
            return ""
        self._shown = len(self._ids)
        if self._decode(self._ids[shown:]):  # else nothing but leading space, of which more may be dropped behind it
            self._known = shown
        return piece

    def rest(self) -> str:
        """What there is behind the last whole character, when no more tokens come."""
        return self._new()

    def _new(self) -> str:
        before, after = (self._decode(self._ids[self._known : end]) for end in (self._shown, len(self._ids)))
        return after[len(before) :]


def _answer(ids: list[int], stop_ids: Collection[int]) -> Answer:
    return Answer(ids[:-1], ids[-1]) if ids and ids[-1] in stop_ids else Answer(ids, None)


def context_of(network: Any) -> int | None:
    """How many tokens a prompt and its answer may have together; None if nothing says so."""
    longest = getattr(unwrapped(network).config, "max_position_embeddings", None)
    soft = soft_prompt(network)
    return longest if longest is None or soft is None else longest - len(soft)


def _limits(network: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> list[int]:
    """How many tokens each answer may have: no more than the context has room for.

    Raises:
        UserError: a prompt leaves no room.
    """
    context, longest = context_of(network), max(map(len, prompts), default=0)
    if context is not None and longest >= context:
        raise UserError(
            f"a prompt has {longest:,} tokens, and the model's context of {context:,} must hold its answer, too; "
            "shorten it"
        )
    return [max_new_tokens if context is None else min(max_new_tokens, context - len(prompt)) for prompt in prompts]


def _steps(
    network: Any,
    prompts: Sequence[list[int]],
    *,
    choose: Chooser,
    stop_ids: Collection[int],
    pad_id: int,
    limits: Sequence[int],
) -> Iterator[dict[int, int]]:
    """The next token of each row that goes on, step by step, up to its stop token or its limit.

    The loop of transformers' generate, whose tokens only a thread and a queue would give away, and whose rows all go on
    until the last one ends.
    """
    if not prompts:
        return
    running, is_shared = _Running(network, prompts, pad_id), _is_shared(network)
    rows: list[int | None] = list(range(len(prompts)))
    for step in itertools.count(1):
        tokens = choose(running.next_logits())
        chosen = dict(zip(rows, tokens.tolist(), strict=True))
        chosen.pop(None, None)
        yield {row: token for row, token in chosen.items() if row is not None}
        going = [
            place
            for place, row in enumerate(rows)
            if row is not None and chosen[row] not in stop_ids and step < limits[row]
        ]
        if not _someone(going, is_shared, tokens.device):
            return
        running.append(tokens)
        if not going:  # the last row goes on unheard, for the other ranks need this one's part of the network
            going, rows = [0], [None] * len(rows)
        if len(going) < len(rows):
            running.keep(going)
            choose.keep(going)
            rows = [rows[place] for place in going]


def _is_shared(network: Any) -> bool:
    """Whether several ranks hold parts of the network: then each runs as many forward passes as the others."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return several and is_fsdp_managed_module(unwrapped(network))


def _someone(going: Sequence[int], is_shared: bool, device: torch.device) -> bool:
    """Whether rows go on, here or on another rank of a network that is shared."""
    if not is_shared:
        return bool(going)
    mark = torch.tensor(len(going), device=device)
    dist.all_reduce(mark)
    return bool(mark)


@final
class _Running:
    """Rows on their way from prompt to answer, padded on the left, and their cache."""

    def __init__(self, network: Any, prompts: Sequence[list[int]], pad_id: int) -> None:
        self._network, self._base = network, unwrapped(network)
        self._soft = soft_prompt(network)
        in_front = [pad_id] * (0 if self._soft is None else len(self._soft))
        longest = max(map(len, prompts), default=0)
        padding = [longest - len(prompt) for prompt in prompts]
        rows = [[pad_id] * pad + in_front + prompt for pad, prompt in zip(padding, prompts, strict=True)]
        mask = [[0] * pad + [1] * (len(row) - pad) for pad, row in zip(padding, rows, strict=True)]
        self._ids = torch.tensor(rows, device=self._base.device)
        self._mask = torch.tensor(mask, device=self._base.device)
        self._cache = DynamicCache(config=self._base.config)
        self._takes = inspect.signature(self._base.forward).parameters
        self._is_first = True

    # A decorator of the single step, not a block around the loop: the caller's grad mode and training mode are its own
    # between two tokens.
    @torch.no_grad()
    def next_logits(self) -> Tensor:
        """Logits (B, V) behind the last token of each row."""
        with evaluating(self._network):
            inputs = self._base.prepare_inputs_for_generation(
                self._ids,
                next_sequence_length=None if self._is_first else 1,
                cache=self._cache,
                attention_mask=self._mask,
                is_first_iteration=self._is_first,
                use_cache=True,
                **self._wanted(),
            )
            logits: Tensor = self._base(**inputs, return_dict=True).logits
        self._is_first = False
        return logits[:, -1].float()

    def append(self, tokens: Tensor) -> None:
        """Put the next token (B,) behind each row."""
        self._ids = torch.cat([self._ids, tokens[:, None]], dim=1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows only."""
        places = torch.tensor(rows, device=self._ids.device)
        self._ids, self._mask = self._ids[places], self._mask[places]
        self._cache.batch_select_indices(places)

    def _wanted(self) -> dict[str, Any]:
        """What only some architectures take, or only the first step needs."""
        inputs: dict[str, Any] = {}
        if "position_ids" in self._takes:
            positions = self._base._prepare_position_ids_for_generation(self._ids, {"attention_mask": self._mask})
            inputs |= {} if positions is None else {"position_ids": positions}
        if "logits_to_keep" in self._takes:
            inputs["logits_to_keep"] = 1  # else a long prompt's first step would hold all logits
        if self._is_first and self._soft is not None:
            inputs["inputs_embeds"] = embedded(self._base, self._soft, self._ids, self._mask)
        return inputs


def unwrapped(network: Any) -> Any:
    """The transformers model in a PEFT model, or the model itself."""
    # The other kind is a PeftModel; asking for that by name would load peft for those who do not use it.
    return network if isinstance(network, PreTrainedModel) else network.get_base_model()
