from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import GenerationConfig, GlmConfig, GlmForCausalLM

from glm_lightning.inference.generation import Answer, generate, stream
from glm_lightning.inference.sampling import Sampling
from glm_lightning.types import UserError

# peft asks transformers for it under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PAD, STOPS = 0, (1, 2)
GREEDY: dict[str, Any] = {"stop_ids": STOPS, "pad_id": PAD, "max_new_tokens": 20}


def random_glm(seed: int = 0) -> GlmForCausalLM:
    torch.manual_seed(seed)
    config = GlmConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=PAD,
        eos_token_id=None,
        initializer_range=0.5,
    )
    return GlmForCausalLM(config)


def random_lora() -> Any:
    network = get_peft_model(random_glm(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"]))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def random_prompt_tuning() -> Any:
    return get_peft_model(random_glm(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))


@pytest.fixture(scope="module", params=[random_glm, random_lora], ids=["plain", "lora"])
def network(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = [3, 9, 1, 5, 7, 2, 9, 4, 6, 11, 3]
    return [torch.randint(3, 64, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def naive(network: Any, prompt: list[int], *, max_new_tokens: int) -> Answer:
    """The whole text through the network for every token, no cache, no batch."""
    network.eval()
    ids = list(prompt)
    for _ in range(max_new_tokens):
        token = int(network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in STOPS:
            return Answer(ids[len(prompt) :], stop=token)
        ids.append(token)
    return Answer(ids[len(prompt) :], stop=None)


def words(ids: list[int]) -> str:
    return "".join(f"{i} " for i in ids)


def test_greedy_equals_a_loop_without_cache(network: Any, prompts: list[list[int]]) -> None:
    answers = generate(network, prompts, **GREEDY)
    assert answers == [naive(network, prompt, max_new_tokens=20) for prompt in prompts]
    assert {answer.finished for answer in answers} == {True, False}  # both ends of an answer were seen


@pytest.mark.parametrize("batch_size", [1, 2, 8, 100])
def test_greedy_does_not_depend_on_the_batch(network: Any, prompts: list[list[int]], batch_size: int) -> None:
    assert generate(network, prompts, **GREEDY, batch_size=batch_size) == generate(network, prompts, **GREEDY)


def test_stream_says_what_generate_says(network: Any, prompts: list[list[int]]) -> None:
    for prompt, answer in zip(prompts, generate(network, prompts, **GREEDY), strict=True):
        pieces = list(stream(network, prompt, tokenizer_decode=words, stop_ids=STOPS, max_new_tokens=20))
        assert pieces == [f"{i} " for i in answer.ids]


@pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning:UserWarning")
def test_prompt_tuning_puts_its_tokens_in_front_once(prompts: list[list[int]]) -> None:
    network = random_prompt_tuning()
    answer = generate(network, prompts[:1], **GREEDY)[0]
    assert answer == naive(network, prompts[0], max_new_tokens=20)
    assert answer.ids != generate(network.get_base_model(), prompts[:1], **GREEDY)[0].ids
    text = "".join(stream(network, prompts[0], tokenizer_decode=words, stop_ids=STOPS, max_new_tokens=20))
    assert text == words(answer.ids)


def test_nothing_of_the_models_own_generation_config_counts(prompts: list[list[int]]) -> None:
    network = random_glm()
    expected = generate(network, prompts, **GREEDY)
    own = GenerationConfig(
        do_sample=True, temperature=3.0, repetition_penalty=5.0, suppress_tokens=[expected[0].ids[0]], max_length=3
    )
    network.generation_config = own
    assert generate(network, prompts, **GREEDY) == expected
    assert network.generation_config is own


def test_no_stop_token_means_all_tokens(prompts: list[list[int]]) -> None:
    answers = generate(random_glm(), prompts, stop_ids=[], pad_id=PAD, max_new_tokens=5)
    assert [(len(answer.ids), answer.finished) for answer in answers] == [(5, False)] * len(prompts)


def test_progress_adds_up_and_nothing_to_do_is_nothing_done(prompts: list[list[int]]) -> None:
    calls: list[int] = []
    answers = generate(random_glm(), prompts, **GREEDY, batch_size=4, progress=calls.append)
    assert sum(calls) == len(prompts)
    # an answer that ends itself is told at once, those that do not with their batch
    assert len(calls) > 3 or not any(answer.finished for answer in answers)
    assert generate(random_glm(), [], **GREEDY) == []


def run_generate(network: Any, prompts: list[list[int]], **options: Any) -> list[int]:
    return generate(network, prompts[:1], **GREEDY, **options)[0].ids


def run_stream(network: Any, prompts: list[list[int]], **options: Any) -> list[int]:
    text = "".join(stream(network, prompts[0], tokenizer_decode=words, stop_ids=STOPS, max_new_tokens=20, **options))
    return [int(word) for word in text.split()]


RUNS = pytest.mark.parametrize("run", [run_generate, run_stream])
Run = Callable[..., list[int]]


@RUNS
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", [None, 7])
def test_torchs_random_state_is_untouched(
    prompts: list[list[int]], run: Run, temperature: float, seed: int | None
) -> None:
    network = random_glm()
    before = torch.get_rng_state()
    run(network, prompts, sampling=Sampling(temperature=temperature, seed=seed))
    assert torch.equal(torch.get_rng_state(), before)


@RUNS
def test_a_seed_decides_what_is_sampled(prompts: list[list[int]], run: Run) -> None:
    network = random_glm()
    first, again, other = (run(network, prompts, sampling=Sampling(temperature=5.0, seed=seed)) for seed in (7, 7, 8))
    assert first == again != other
    assert len({tuple(run(network, prompts, sampling=Sampling(temperature=5.0))) for _ in range(4)}) > 1


@RUNS
def test_sampling_keeps_to_the_most_likely_tokens_of_top_p(prompts: list[list[int]], run: Run) -> None:
    network = random_glm()
    narrow = Sampling(temperature=1.0, top_p=1e-6, seed=1)
    assert run(network, prompts, sampling=narrow) == run(network, prompts)


def test_sampling_reaches_beyond_fifty_tokens() -> None:
    network = random_glm()
    prompts = [[5, 6]] * 3000
    hot = Sampling(temperature=100.0, seed=0)
    answers = generate(network, prompts, stop_ids=[], pad_id=PAD, max_new_tokens=1, sampling=hot, batch_size=3000)
    assert len({answer.ids[0] for answer in answers}) > 50  # transformers' own default keeps the 50 likeliest


@RUNS
def test_modes_are_restored_part_by_part(prompts: list[list[int]], run: Run) -> None:
    network = random_glm().train()
    network.model.layers[0].eval()
    before = {name: module.training for name, module in network.named_modules()}
    run(network, prompts)
    assert {name: module.training for name, module in network.named_modules()} == before


def test_a_stream_leaves_grad_and_training_mode_alone_between_its_pieces(prompts: list[list[int]]) -> None:
    network = random_glm().train()
    pieces = stream(network, prompts[0], tokenizer_decode=words, stop_ids=[], max_new_tokens=3)
    next(pieces)
    assert torch.is_grad_enabled()
    assert network.training
    pieces.close()  # type: ignore[attr-defined]


@RUNS
def test_no_graph_is_built(prompts: list[list[int]], run: Run) -> None:
    network, seen = random_glm(), set()
    network.lm_head.register_forward_hook(lambda module, inputs, output: seen.add(output.requires_grad))
    run(network, prompts)
    assert seen == {False}


def test_dropout_is_off_while_generating(prompts: list[list[int]]) -> None:
    network = random_glm()
    network.config.attention_dropout = 0.9
    for layer in network.model.layers:
        layer.self_attn.attention_dropout = 0.9
    expected = generate(network.eval(), prompts, **GREEDY)
    assert generate(network.train(), prompts, **GREEDY) == expected


class Says:
    """A network that says given tokens, whatever it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: list[int]) -> None:
        said = iter(tokens)

        def next_logits(running: Any) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.tensor([next(said)]), 256).float()

        monkeypatch.setattr("glm_lightning.inference.generation._Running.next_logits", next_logits)


def stream_bytes(monkeypatch: pytest.MonkeyPatch, data: bytes, stop_ids: tuple[int, ...] = ()) -> Iterator[str]:
    Says(monkeypatch, list(data))
    return stream(
        random_glm(),
        [5],
        tokenizer_decode=lambda ids: bytes(ids).decode("utf-8", errors="replace"),
        stop_ids=stop_ids,
        max_new_tokens=len(data),
    )


def test_a_stream_never_yields_half_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "白a裙🙂é。"
    assert list(stream_bytes(monkeypatch, text.encode())) == list(text)


def test_a_stream_ends_with_what_it_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(stream_bytes(monkeypatch, "好裙".encode()[:-1])) == ["好", "\ufffd"]


def test_a_stream_goes_on_behind_broken_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "".join(stream_bytes(monkeypatch, b"\xe8\xa3ab\xff" + "裙".encode())) == "\ufffdab\ufffd裙"


def test_a_stream_ends_before_the_stop_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "".join(stream_bytes(monkeypatch, b"ab\x02cd", stop_ids=(2,))) == "ab"


def test_a_stream_keeps_spaces_that_a_decoder_drops_at_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    Says(monkeypatch, [1, 2, 3])
    pieces = stream(
        random_glm(),
        [5],
        tokenizer_decode=lambda ids: "".join(f" w{i}" for i in ids).removeprefix(" "),
        stop_ids=(),
        max_new_tokens=3,
    )
    assert "".join(pieces) == "w1 w2 w3"


SAMPLED = Sampling(temperature=1.5, top_p=0.9, seed=11)


@torch.no_grad()
def naive_sampled(network: Any, prompt: list[int], row: int, *, max_new_tokens: int) -> Answer:
    """The whole text through the network for every token; the smallest set of likeliest tokens with 90 percent."""
    seed = int(numpy.random.SeedSequence([11, row]).generate_state(1, numpy.uint64)[0])
    generator = torch.Generator().manual_seed(seed)
    network.eval()
    ids = list(prompt)
    for _ in range(max_new_tokens):
        logits = network(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] / 1.5
        likeliest = logits.softmax(-1).sort(descending=True)
        before = likeliest.values.cumsum(-1) - likeliest.values
        logits[likeliest.indices[before >= 0.9]] = -torch.inf
        token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
        if token in STOPS:
            return Answer(ids[len(prompt) :], stop=token)
        ids.append(token)
    return Answer(ids[len(prompt) :], stop=None)


@pytest.mark.parametrize("batch_size", [1, 2, 8, 100])
def test_what_is_sampled_depends_on_seed_and_row_only(network: Any, prompts: list[list[int]], batch_size: int) -> None:
    answers = generate(network, prompts, **GREEDY, sampling=SAMPLED, batch_size=batch_size)
    assert answers == [naive_sampled(network, each, row, max_new_tokens=20) for row, each in enumerate(prompts)]
    assert {answer.finished for answer in answers} == {True, False}
    assert answers != generate(network, prompts, **GREEDY)


def test_a_stream_draws_what_a_row_draws(prompts: list[list[int]]) -> None:
    network = random_glm()
    answers = generate(network, prompts, **GREEDY, sampling=SAMPLED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        options: dict[str, Any] = {"stop_ids": STOPS, "max_new_tokens": 20, "sampling": SAMPLED, "draw": row}
        assert "".join(stream(network, prompt, tokenizer_decode=words, **options)) == words(answer.ids)


def test_rows_of_one_prompt_draw_differently() -> None:
    answers = generate(random_glm(), [[5, 6]] * 4, **GREEDY, sampling=SAMPLED)
    assert len({tuple(answer.ids) for answer in answers}) == 4


def test_draws_are_as_frequent_as_they_are_likely() -> None:
    network = random_glm()
    options: dict[str, Any] = {"stop_ids": [], "pad_id": PAD, "max_new_tokens": 1, "batch_size": 4000}
    answers = generate(network, [[5, 6]] * 4000, **options, sampling=Sampling(temperature=0.7, seed=1))
    with torch.no_grad():
        expected = (network.eval()(input_ids=torch.tensor([[5, 6]])).logits[0, -1] / 0.7).softmax(-1)
    drawn = torch.tensor([answer.ids[0] for answer in answers]).bincount(minlength=64) / 4000
    assert ((drawn - expected).abs() < 5 * (expected / 4000).sqrt() + 2e-3).all()


def test_rows_that_have_ended_are_computed_no_more(prompts: list[list[int]]) -> None:
    network, seen = random_glm(), []
    network.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    answers = generate(network, prompts, **GREEDY)
    lengths = [len(answer.ids) + answer.finished for answer in answers]
    assert seen == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_what_cannot_be_sampled_is_refused_all_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Sampling(temperature=float("nan"), top_p=0.0, seed=-1)
    assert [problem.split(" ")[0] for problem in caught.value.problems] == ["temperature", "top_p", "seed"]


def with_context(length: int) -> GlmForCausalLM:
    network = random_glm()
    network.config.max_position_embeddings = length
    return network


@pytest.mark.parametrize("batch_size", [1, 100])
def test_an_answer_ends_where_the_context_does(prompts: list[list[int]], batch_size: int) -> None:
    answers = generate(with_context(12), prompts, **GREEDY, batch_size=batch_size)
    whole = generate(random_glm(), prompts, **GREEDY)
    for prompt, answer, full in zip(prompts, answers, whole, strict=True):
        room = 12 - len(prompt)
        ends = full.finished and len(full.ids) < room
        assert answer == (full if ends else Answer(full.ids[:room], stop=None))


def test_a_prompt_without_room_for_an_answer_is_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(UserError, match="a prompt has 11 tokens, and the model's context of 11"):
        generate(with_context(11), prompts, **GREEDY)
