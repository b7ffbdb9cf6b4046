"""Rows that come and go: each says what it says alone, and what a loop without a cache says."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from tiny_families import FAMILIES, GMASK, SOP, made, network_of
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from glm_lightning.inference.batch import Batch, Prefill, Speaker
from glm_lightning.inference.batch_cache import ROOM
from glm_lightning.inference.generation import generate
from glm_lightning.inference.rows import Row, Token, Weighting
from glm_lightning.inference.sampling import GREEDY, Sampling
from glm_lightning.methods.adapters import put_on
from glm_lightning.models.twin import twin
from glm_lightning.types import UserError

STOP = 1


class Ear:
    def __init__(self) -> None:
        self.tokens: list[Token] = []
        self.reason: str | None = None
        self.error: Exception | None = None

    def hear(self, token: Token) -> bool:
        self.tokens.append(token)
        return True

    def end(self, reason: str) -> None:
        assert self.reason is None
        self.reason = reason

    def fail(self, error: Exception) -> None:
        self.error = error

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


def row(prompt: list[int], max_new_tokens: int = 12, sampling: Sampling = GREEDY, **more) -> tuple[Row, Ear]:
    ear = Ear()
    more = {"stop_ids": (STOP,), **more}
    return Row(prompt, ear, max_new_tokens=max_new_tokens, sampling=sampling, **more), ear


def run(speaker: Speaker, *rows: Row, piece: int = 1000) -> None:
    batch, prefill = Batch(speaker), Prefill(speaker, rows, piece=piece)
    logits = None
    while logits is None:
        logits = prefill.step()
    batch.join(prefill, logits)
    while batch.rows:
        batch.step()


def prompt(rng: random.Random, length: int) -> list[int]:
    return [*(rng.randrange(2, 90) for _ in range(length)), GMASK, SOP]


@torch.no_grad()
def likeliest(network: PreTrainedModel, ids: list[int], said: list[int]) -> list[int]:
    """The likeliest token at each place of an answer and behind it, by one forward pass without a cache or a batch."""
    logits = network(input_ids=torch.tensor([ids + said]), use_cache=False).logits[0]
    return logits[len(ids) - 1 :].argmax(-1).tolist()


def assert_greedy(network: PreTrainedModel, each: Row, ear: Ear) -> None:
    expected = likeliest(network, each.prompt_ids, ear.ids)
    assert ear.ids == expected[:-1]
    assert ear.reason == ("length" if len(ear.ids) == each.max_new_tokens else "stop")
    assert ear.reason == "length" or expected[-1] == STOP


def mistral() -> PreTrainedModel:
    """A window of five tokens: what a row sees depends on how far back it is, not on where others begin."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    network = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=5, initializer_range=0.4))
    return network.eval()


@cache
def plain(family: str) -> PreTrainedModel:
    return mistral() if family == "mistral" else network_of(family)


def traffic(speaker: Speaker, network: PreTrainedModel, *, seed: int, most: int = 5) -> Batch:
    """Rows that come and go in any order; every answer is the likeliest, token for token."""
    rng = random.Random(seed)
    waiting = [row(prompt(rng, rng.randrange(1, 40)), rng.randrange(1, 2 * ROOM if i == 5 else 20)) for i in range(16)]
    asked = list(waiting)
    batch = Batch(speaker)
    while waiting or batch.rows:
        if waiting and len(batch.rows) < most and rng.random() < 0.5:
            joining = [waiting.pop()[0] for _ in range(min(len(waiting), rng.randrange(1, 4)))]
            prefill = Prefill(speaker, joining, piece=rng.choice([3, 7, 1000]))
            logits = None
            while logits is None:
                batch.step()
                logits = prefill.step()
            batch.join(prefill, logits)
        batch.step()
    for each, ear in asked:
        assert_greedy(network, each, ear)
    return batch


@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_rows_that_come_and_go_say_what_they_say_alone(family):
    batch = traffic(Speaker(plain(family), pad_id=0), plain(family), seed=1)
    assert batch.num_bytes == 0


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["glm", "chatglm"])
def test_whatever_attends(family, implementation):
    network = network_of(family)
    network.set_attn_implementation(implementation)
    traffic(Speaker(network, pad_id=0), plain(family), seed=2)


@pytest.mark.parametrize("method", ["lora", "ia3", "ptuning_v2", "prompt_tuning"])
def test_adapters_on_twins_of_one_base(method):
    base = network_of("glm")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapted = made(method, twin(base)).network.eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    speaker = Speaker(adapted, pad_id=0)
    rng = random.Random(3)
    rows = [row(prompt(rng, length)) for length in (3, 17, 9)]
    run(speaker, *(each for each, _ in rows), piece=4)
    expected = generate(
        adapted, [each.prompt_ids for each, _ in rows], stop_ids=[STOP], pad_id=0, max_new_tokens=12, batch_size=1
    )
    assert [ear.ids for _, ear in rows] == [answer.ids for answer in expected]
    plain_rows = [row(each.prompt_ids) for each, _ in rows]
    run(Speaker(base, pad_id=0), *(each for each, _ in plain_rows))
    for each, ear in plain_rows:
        assert_greedy(plain("glm"), each, ear)
    assert [ear.ids for _, ear in plain_rows] != [ear.ids for _, ear in rows]
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_a_twin_shares_every_tensor_and_no_module():
    base = network_of("glm")
    other = twin(base)
    ours, theirs = list(base.parameters()), list(other.parameters())
    assert [a.data_ptr() for a in ours] == [b.data_ptr() for b in theirs]
    assert all(a is b for a, b in zip(base.buffers(), other.buffers(), strict=True))
    assert not set(map(id, base.modules())) & set(map(id, other.modules()))
    put_on_other = put_on(other, __import__("peft").LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert "lora" in str(put_on_other)
    assert "lora" not in str(base)


def test_rows_leave_when_nobody_wants_them():
    speaker = Speaker(plain("glm"), pad_id=0)
    rng = random.Random(4)
    (gone, ear), (stays, other) = row(prompt(rng, 5), 40, stop_ids=()), row(prompt(rng, 9), 40, stop_ids=())
    batch, prefill = Batch(speaker), Prefill(speaker, [gone, stays], piece=100)
    batch.join(prefill, prefill.step())
    batch.step()
    gone.leave()
    batch.step()
    assert batch.rows == [stays]
    assert (len(ear.ids), len(other.ids)) == (2, 3)
    while batch.rows:
        batch.step()
    assert len(ear.ids) == 2
    assert_greedy(plain("glm"), stays, other)


def test_logits_that_are_no_numbers_end_their_row_and_no_other(monkeypatch):
    network = network_of("glm")
    speaker = Speaker(network, pad_id=0)
    rng = random.Random(5)
    (broken, ear), (sound, other) = row(prompt(rng, 5), 9, stop_ids=()), row(prompt(rng, 5), 9, stop_ids=())
    batch, prefill = Batch(speaker), Prefill(speaker, [broken, sound], piece=100)
    batch.join(prefill, prefill.step())
    network.model.embed_tokens.weight.data[ear.ids[0]] = float(
        "nan"
    )  # this row's next states are broken, in all layers
    assert other.ids[0] != ear.ids[0]
    while batch.rows:
        batch.step()
    assert isinstance(ear.error, ArithmeticError)
    assert (ear.reason, other.error, other.reason) == (None, None, "length")


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_others():
    speaker = Speaker(plain("glm"), pad_id=0)
    rng = random.Random(6)
    prompts = [prompt(rng, length) for length in (4, 11, 7, 7)]
    manners = [
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=2.0, top_p=0.5, seed=1),
        GREEDY,
        Sampling(temperature=1.0, seed=2),
    ]
    together = [row(ids, sampling=manner, draw=i) for i, (ids, manner) in enumerate(zip(prompts, manners, strict=True))]
    run(speaker, *(each for each, _ in together))
    for i, (ids, manner) in enumerate(zip(prompts, manners, strict=True)):
        each, alone = row(ids, sampling=manner, draw=i)
        run(speaker, each)
        assert alone.ids == together[i][1].ids
    (answer,) = generate(plain("glm"), prompts[:1], stop_ids=[STOP], pad_id=0, max_new_tokens=12, sampling=manners[0])
    assert answer.ids == together[0][1].ids
    assert together[3][1].ids != likeliest(plain("glm"), prompts[3], together[3][1].ids)[:-1]


def test_a_temperature_next_to_nothing_is_greedy():
    each, ear = row(prompt(random.Random(7), 5), sampling=Sampling(temperature=1e-40, seed=0))
    run(Speaker(plain("glm"), pad_id=0), each)
    assert_greedy(plain("glm"), each, ear)


@torch.no_grad()
def test_logarithms_are_those_of_the_network():
    each, ear = row(prompt(random.Random(8), 5), 5, stop_ids=(), num_logprobs=3)
    other, deaf = row(prompt(random.Random(9), 7), 5, stop_ids=())
    run(Speaker(plain("glm"), pad_id=0), each, other)
    whole = torch.tensor([each.prompt_ids + ear.ids])
    expected = plain("glm")(input_ids=whole, use_cache=False).logits[0, len(each.prompt_ids) - 1 : -1].log_softmax(-1)
    for token, own in zip(ear.tokens, expected, strict=True):
        assert token.logprob == pytest.approx(float(own[token.id]), abs=1e-4)
        values, ids = own.topk(3)
        assert [i for i, _ in token.likeliest] == ids.tolist()
        assert [v for _, v in token.likeliest] == pytest.approx(values.tolist(), abs=1e-4)
    assert {token.logprob for token in deaf.tokens} == {None}


def test_weights_are_added_to_logits():
    ids = prompt(random.Random(10), 5)
    first = likeliest(plain("glm"), ids, [])[0]
    banned, ear = row(ids, 6, stop_ids=(), weighting=Weighting(bias={first: -1e4}))
    wanted, eager = row(ids, 6, stop_ids=(), weighting=Weighting(bias={50: 1e4}))
    fresh, new = row(ids, 20, stop_ids=(), weighting=Weighting(presence=1e4))
    run(Speaker(plain("glm"), pad_id=0), banned, wanted, fresh)
    assert first not in ear.ids
    assert eager.ids == [50] * 6
    assert len(set(new.ids)) == 20
    counted, _ = row(ids, weighting=Weighting(frequency=0.5, presence=0.25))
    for token in (7, 7, 9):
        counted.take(Token(token))
    weighed = counted.weigh(torch.zeros(12))
    assert weighed[[7, 9, 8]].tolist() == [-1.25, -0.75, 0.0]


def test_a_network_that_remembers_more_than_keys_and_values_is_refused():
    from transformers import Mamba2Config, Mamba2ForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "num_heads": 4, "head_dim": 8, "n_groups": 1, "state_size": 4}
    network = Mamba2ForCausalLM(Mamba2Config(**sizes, num_hidden_layers=1)).eval()
    with pytest.raises(UserError, match="type 'mamba2' remembers more than keys and values"):
        Batch(Speaker(network, pad_id=0))


def test_memory_follows_the_rows():
    speaker = Speaker(plain("glm"), pad_id=0)
    rng = random.Random(11)
    many = [row(prompt(rng, 6), 3 if i else 200, stop_ids=())[0] for i in range(16)]
    batch, prefill = Batch(speaker), Prefill(speaker, many, piece=1000)
    batch.join(prefill, prefill.step())
    full = batch.num_bytes
    sizes = []
    while batch.rows:
        batch.step()
        sizes.append(batch.num_bytes)
    assert max(sizes[5:-1]) < full  # one long row needs less than sixteen short ones had
    assert sizes[-1] == 0
