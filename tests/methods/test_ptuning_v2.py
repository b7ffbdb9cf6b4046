"""P-tuning v2 as a method: where it starts, what it counts, what it refuses, and whole runs of it."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hydra.utils import get_class
from prefix_networks import encoder_for, network_of, some_ids
from safetensors.torch import load_file
from tiny_runs import largest_difference, weights
from transformers import AutoModelForCausalLM, GlmConfig

import glm_lightning
from glm_lightning import tokenizers
from glm_lightning.methods.ingredients import Ingredients
from glm_lightning.methods.ptuning_v2 import PTuningV2
from glm_lightning.models import prefix
from glm_lightning.models.chatglm import ChatGLMConfig
from glm_lightning.objectives.sft import SFT
from glm_lightning.types import UserError

RUN = ("method=ptuning_v2", "method.prefix_length=6", "callbacks.checkpoints.every_n_steps=1")


def method(network=None, *, tokenizer=None, **knobs) -> PTuningV2:
    """A method that has adapted ``network``, or none yet."""
    ingredients = Ingredients(
        load=lambda: network,
        objective=SFT(),
        optimizer=None,
        scheduler=None,
        seed=1,
        base="",
        tokenizer=tokenizer,
    )
    made = PTuningV2(ingredients, **knobs)
    if network is not None:
        made.configure_model()
    return made


def problems(**knobs) -> str:
    with pytest.raises(UserError) as caught:
        method(**knobs)
    return str(caught.value)


def trained(**knobs) -> int:
    """Number of trained parameters of a network on the meta device."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(knobs.pop("config"))
    return sum(parameter.numel() for parameter in method(skeleton, **knobs).trained().values())


GLM2 = {"num_hidden_layers": 28, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 2}
CHATGLM2 = GlmConfig(**GLM2, head_dim=128, intermediate_size=13696, vocab_size=65024, pad_token_id=0)
GLM4 = GlmConfig(**{**GLM2, "num_hidden_layers": 40}, head_dim=128, intermediate_size=13696)


@pytest.mark.parametrize(
    ("config", "knobs", "count"),
    [
        # THUDM, modeling_chatglm.py of each generation: Embedding(128, layers * 2 * key/value size)
        (ChatGLMConfig(), {}, 128 * 28 * 4096 * 2),
        (CHATGLM2, {}, 128 * 28 * 256 * 2),
        # GLM-4 dropped its prefix encoder; the same arithmetic with 40 layers
        (GLM4, {}, 128 * 40 * 256 * 2),
        # ChatGLM-6B: Embedding(128, 4096), Linear(4096, 4096), Linear(4096, 229376)
        (ChatGLMConfig(), {"projection": True, "init": "random"}, 128 * 4096 + 4097 * 4096 + 4097 * 229376),
        # ChatGLM2-6B: Embedding(128, 14336), Linear(14336, 4096), Linear(4096, 14336)
        (CHATGLM2, {"projection": True, "init": "random"}, 128 * 14336 + 14337 * 4096 + 4097 * 14336),
        (
            CHATGLM2,
            {"projection": True, "projection_hidden": 512, "init": "random"},
            128 * 14336 + 14337 * 512 + 513 * 14336,
        ),
    ],
)
def test_number_of_trained_parameters_at_real_sizes(config, knobs, count):
    assert trained(config=config, **knobs) == count


def test_published_counts():
    assert trained(config=ChatGLMConfig()) == 29_360_128
    assert trained(config=CHATGLM2) == 1_835_008


def test_only_the_prefix_is_trained_and_the_network_stays_itself():
    network = network_of("glm")
    adapted = method(network, prefix_length=4)
    assert adapted.network is network
    assert adapted.trained().keys() == {"network.model.prefix_encoder.embedding.weight"}
    assert adapted.trained()["network.model.prefix_encoder.embedding.weight"].dtype == torch.float32


def test_all_mistakes_are_told_at_once(tmp_path):
    told = problems(prefix_length=0, dropout=1.0, init_std=0.0, projection_hidden=0, init_from=str(tmp_path))
    for words in (
        "prefix_length is 0",
        "dropout is 1.0",
        "init_std is 0.0",
        "projection_hidden is 0",
        "holds no prefix",
    ):
        assert words in told
    told = problems(init="text", init_text=" ", projection=True, init_from=str(tmp_path))
    for words in ("init=text with the text", "a prefix starts from one"):
        assert words in told
    assert "give init=text" in problems(init_text="who")
    assert "a projection begins at random" in problems(projection=True)
    assert "there is no projection" in problems(projection_hidden=8)


def test_another_attention_is_refused():
    network = network_of("glm")
    network.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match=r"model\.attention is 'flex_attention'"):
        method(network)


@pytest.fixture
def texts(tiny_glm):
    tokenizer = tokenizers.load(tiny_glm)
    base = AutoModelForCausalLM.from_pretrained(tiny_glm, dtype=torch.float32).eval()
    return tiny_glm, tokenizer, base


@pytest.mark.parametrize(("text", "length"), [("The quick brown fox jumps", 4), ("你好", 9)])
def test_it_starts_as_the_base_with_the_text_in_front(texts, text, length):
    folder, tokenizer, base = texts
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = method(network, tokenizer=tokenizer, prefix_length=length, init="text", init_text=text)
    (ids,) = tokenizer.encode([text])
    in_front = torch.tensor([(ids * length)[:length]])
    rows = torch.arange(20, 40)[None]
    with torch.no_grad():
        want = base(input_ids=torch.cat([in_front, rows], dim=1)).logits[:, length:]
        got = network.eval()(input_ids=rows).logits
    assert (got - want).abs().max() < 3e-5
    word = "cut" if len(ids) > length else "repeated"
    assert [notice for notice in adapted.notices if f"{len(ids)} tokens: {word} to the prefix's {length}" in notice]


def test_it_starts_as_the_base_with_random_tokens_in_front(texts, monkeypatch):
    folder, _, base = texts
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    drawn = []
    original = prefix.layers_of_text
    monkeypatch.setattr(prefix, "layers_of_text", lambda n, ids: (drawn.append(ids), original(n, ids))[1])
    method(network, prefix_length=7)
    rows = torch.arange(20, 40)[None]
    assert len(set(drawn[0].tolist())) > 1
    with torch.no_grad():
        want = base(input_ids=torch.cat([drawn[0][None], rows], dim=1)).logits[:, 7:]
        assert (network.eval()(input_ids=rows).logits - want).abs().max() < 3e-5


@pytest.mark.parametrize("hidden", [None, 6])
def test_it_goes_on_from_an_official_checkpoint(hidden, tmp_path):
    encoder = encoder_for(network_of("glm"), length=5, hidden=hidden)
    state = {f"transformer.prefix_encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"pre_seq_len": 5}), encoding="utf-8")
    network, like = network_of("glm"), network_of("glm")
    projection = hidden is not None
    method(network, prefix_length=5, projection=projection, init_from=str(tmp_path), dropout=0.25)
    assert prefix.encoder_of(network).dropout == 0.25
    prefix.attach(like, encoder)
    with torch.no_grad():
        assert torch.equal(network.eval()(input_ids=some_ids(1, 7)).logits, like(input_ids=some_ids(1, 7)).logits)
    asked = f"method.prefix_length=5 method.projection={str(projection).lower()}"
    with pytest.raises(UserError, match=re.escape(asked)):
        method(init_from=str(tmp_path)).check(network_of("glm"))


def test_what_peft_cannot_read_is_told():
    assert "PEFT does not read" in method(network_of("chatglm")).notices[0]
    assert method(network_of("glm")).notices == []


def test_a_run_ends_in_an_adapter_that_answers_as_the_live_network_did(train, tiny_glm):
    live = []
    original = PTuningV2.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PTuningV2, "save", lambda self, folder: (live.append(self), original(self, folder))[1])
        run = train("run", *RUN, "trainer.max_steps=3", "trainer.precision=32-true", "data.max_length=64")
    assert {file.name for file in run.artefact("adapter").iterdir()} >= {
        *("adapter_config.json", "adapter_model.safetensors", "prefix_encoder.json", "prefix_encoder.safetensors"),
    }
    (adapted,) = live
    for loaded in (glm_lightning.load(run.path), glm_lightning.load(tiny_glm, adapter=run.artefact("adapter"))):
        ids = torch.arange(20, 60)[None]
        with torch.no_grad():
            assert torch.equal(loaded.model(input_ids=ids).logits, adapted.network.eval()(input_ids=ids).logits)
    state = weights(run)
    assert state.keys() == {"network.model.prefix_encoder.embedding.weight"}
    stored = load_file(run.artefact("adapter") / "prefix_encoder.safetensors")
    assert torch.equal(stored["embedding.weight"], state["network.model.prefix_encoder.embedding.weight"])
    go_on = train("on", *RUN, f"method.init_from={run.artefact('adapter')}", "trainer.max_steps=1")
    assert go_on.finished


def test_official_folders_are_told_to_need_a_base(tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"pre_seq_len": 5}), encoding="utf-8")
    with pytest.raises(UserError, match="without its base; load the base with adapter="):
        glm_lightning.load(tmp_path)


@pytest.mark.parametrize("projection", ["false", "true"])
def test_resumed_equals_uninterrupted(train, tmp_path, projection):
    knobs = (*RUN, f"method.projection={projection}", "method.init=random", "trainer.precision=32-true")
    whole = train("whole", *knobs)
    with pytest.MonkeyPatch.context() as patch:
        original = get_class("glm_lightning.callbacks.BestAndLast").on_train_batch_end

        def dying(self, trainer, *arguments):
            original(self, trainer, *arguments)
            if trainer.global_step == 4:
                raise InterruptedError

        patch.setattr("glm_lightning.callbacks.BestAndLast.on_train_batch_end", dying)
        with pytest.raises(InterruptedError):
            train("broken", *knobs)
    resumed = glm_lightning.train([f"resume={tmp_path / 'broken'}"])
    expected, got = weights(whole), weights(type(whole)(resumed.path))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.slow
def test_two_processes_equal_one(train, train_py):
    knobs = (*RUN, "method.dropout=0.0", "trainer.max_steps=3")
    one = train("one", *knobs, "trainer.accumulate_grad_batches=8")
    two = train_py("two", *knobs, "trainer=ddp_cpu", "trainer.accumulate_grad_batches=4")
    assert largest_difference(weights(one), weights(two)) < 1e-10


def test_it_learns_and_checkpointing_changes_only_the_work(train):
    knobs = (*RUN, "optimizer.lr=1e-1")
    plain = train("plain", *knobs)
    again = train("again", *knobs, "model.gradient_checkpointing=true")
    assert largest_difference(weights(plain), weights(again)) < 1e-10
    report = plain.read_report()
    assert report["metrics"]["val/loss"] < report["before"]["val/loss"] - 0.02
