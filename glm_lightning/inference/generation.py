"""Token ids in, token ids or text out: batched for evaluation, piece by piece for a conversation."""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from glm_lightning.inference.soft_prompts import embedded, soft_prompt
from glm_lightning.models.modes import evaluating

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said: ids without the stop token, and whether there was one before ``max_new_tokens``."""

    ids: list[int]
    finished: bool


def generate(
    network: Any,
    prompts: list[list[int]],
    *,
    stop_ids: Collection[int],
    pad_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answer every prompt, in the order of the prompts; ``network`` is a transformers or a PEFT model.

    Temperature 0 is greedy. Sampling leaves torch's own random state as it was; ``seed`` (None: a fresh one) and the
    batches decide what is drawn. ``progress`` is called with the number of prompts answered since its last call.
    """
    config = _config(stop_ids, pad_id, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    # Longest first: what does not fit into memory fails at once; neighbours in length share a batch, little is padding.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: dict[int, Answer] = {}
    with evaluating(network), _only(network, config), _random_state(network, seed, sampled=temperature > 0):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            new_ids = _generate_batch(network, [prompts[i] for i in rows], pad_id)
            answers.update((i, _answer(ids, stop_ids)) for i, ids in zip(rows, new_ids, strict=True))
            if progress:
                progress(len(rows))
    return [answers[i] for i in range(len(prompts))]


def stream(
    network: Any,
    prompt_ids: list[int],
    *,
    tokenizer_decode: Callable[[list[int]], str],
    stop_ids: Collection[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[str]:
    """Yield the answer to one prompt as text, in pieces that are whole characters and together the whole answer.

    Ends before the first stop token. Sampling draws from a generator of its own; ``seed`` None takes a fresh one.
    """
    choose = _chooser(network.device, temperature=temperature, top_p=top_p, seed=seed)
    tokens = _tokens(network, prompt_ids, max_new_tokens=max_new_tokens, choose=choose)
    yield from pieces(itertools.takewhile(lambda token: token not in stop_ids, tokens), tokenizer_decode)


def pieces(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """The text of ``tokens`` as they come, in whole characters: put together it is ``decode`` of all of them."""
    ids: list[int] = []
    # Decoding restarts one piece back: a leading space that tokenizers drop is dropped in both texts alike.
    known = shown = 0
    for token in tokens:
        ids.append(token)
        before, after = decode(ids[known:shown]), decode(ids[known:])
        if len(after) > len(before) and not after.endswith(_REPLACEMENT):
            yield after[len(before) :]
            if decode(ids[shown:]):  # else nothing but leading space, of which more may be dropped behind it
                known = shown
            shown = len(ids)
    before, after = decode(ids[known:shown]), decode(ids[known:])
    if len(after) > len(before):
        yield after[len(before) :]


def _config(
    stop_ids: Collection[int], pad_id: int, *, max_new_tokens: int, temperature: float, top_p: float
) -> GenerationConfig:
    # top_k: unset would mean transformers' 50.
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=sorted(stop_ids), pad_token_id=pad_id, use_cache=True, **sampling
    )


def _generate_batch(network: Any, prompts: list[list[int]], pad_id: int) -> list[list[int]]:
    soft = soft_prompt(network)
    if soft is not None:
        base = _base(network)
        with torch.no_grad():
            return base.generate(**embedded(base, soft, prompts, pad_id=pad_id)).tolist()  # type: ignore[no-any-return]
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    input_ids = torch.tensor([[pad_id] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
    attention_mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
    output: Tensor = network.generate(
        input_ids=input_ids.to(network.device), attention_mask=attention_mask.to(network.device)
    )
    new_ids: list[list[int]] = output[:, longest:].tolist()
    return new_ids


def _answer(ids: list[int], stop_ids: Collection[int]) -> Answer:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    return Answer(ids[:end], finished=end is not None)


def _tokens(
    network: Any, prompt_ids: list[int], *, max_new_tokens: int, choose: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[int]:
    # The loop of transformers' generate, for one row; a thread and a queue would be needed to get at its tokens.
    ids = torch.tensor([prompt_ids], device=network.device)
    cache = DynamicCache(config=_base(network).config)
    for position in range(max_new_tokens):
        logits = _next_logits(network, ids, cache, first=position == 0)
        token = choose(ids, logits)
        ids = torch.cat([ids, token], dim=1)
        yield int(token)


# A decorator of the single step, not a block around the loop: the caller's grad mode and training mode are its own
# between two tokens.
@torch.no_grad()
def _next_logits(network: Any, ids: Tensor, cache: DynamicCache, *, first: bool) -> Tensor:
    base, soft = _base(network), soft_prompt(network)
    with evaluating(network):
        # PEFT's own would put soft tokens in front, too, and drop positions.
        inputs = (network if soft is None else base).prepare_inputs_for_generation(
            ids,
            next_sequence_length=None if first else 1,
            cache=cache,
            is_first_iteration=first,
            use_cache=True,
        )
        if first and soft is not None:
            inputs |= {"input_ids": None, "inputs_embeds": torch.cat([soft, base.get_input_embeddings()(ids[0])])[None]}
        logits: Tensor = base(**inputs, return_dict=True).logits
    return logits[:, -1].float()


def _chooser(
    device: torch.device, *, temperature: float, top_p: float, seed: int | None
) -> Callable[[Tensor, Tensor], Tensor]:
    if temperature <= 0:
        return lambda ids, logits: logits.argmax(dim=-1, keepdim=True)
    # Any: transformers asks for LongTensor, which no torch function is declared to give.
    warp: Any = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    generator = torch.Generator(device).manual_seed(_fresh(seed))
    return lambda ids, logits: torch.multinomial(warp(ids, logits).softmax(dim=-1), 1, generator=generator)


def _fresh(seed: int | None) -> int:
    return secrets.randbits(63) if seed is None else seed


def _base(network: Any) -> Any:
    # The other kind is a PeftModel; asking for that by name would load peft for those who do not use it.
    return network if isinstance(network, PreTrainedModel) else network.get_base_model()


@contextlib.contextmanager
def _only(network: Any, config: GenerationConfig) -> Iterator[None]:
    # An argument of generate is not enough: what it leaves unset, transformers takes from the model's own.
    base = _base(network)
    original = base.generation_config
    base.generation_config = config
    try:
        yield
    finally:
        base.generation_config = original


@contextlib.contextmanager
def _random_state(network: Any, seed: int | None, *, sampled: bool) -> Iterator[None]:
    # transformers draws from the global generator; whoever trains with it must not notice.
    devices = [network.device] if network.device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=sampled):
        if sampled:
            torch.manual_seed(_fresh(seed))
        yield
