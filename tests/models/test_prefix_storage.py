"""A prefix on disk and in other people's hands, and one that begins as a text."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from prefix_networks import FAMILIES, cache_of, encoder_for, network_of, some_ids, with_prefix
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GlmConfig

from glm_lightning.models import prefix
from glm_lightning.models.chatglm import ChatGLMConfig
from glm_lightning.models.chatglm.positions import positions
from glm_lightning.models.quantization import keep_trainable
from glm_lightning.types import UserError

PEFT = ("glm", "glm4", "glm4_moe", "llama", "llama_yarn", "qwen3")
NEAR = 3e-5


def logits_of(network, ids, **inputs) -> Tensor:
    with torch.no_grad():
        return network(input_ids=ids, **inputs).logits


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("hidden", [None, 6])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_to_the_last_bit(family, hidden, tmp_path):
    network = with_prefix(family, hidden=hidden, dropout=0.2)
    prefix.save(network, tmp_path)
    assert prefix.is_prefix(tmp_path)
    loaded = prefix.load(network_of(family), tmp_path)
    state, again = (prefix.encoder_of(n).state_dict() for n in (network, loaded))
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert prefix.encoder_of(loaded).dropout == 0.2
    assert torch.equal(logits_of(loaded, some_ids(2, 9)), logits_of(network, some_ids(2, 9)))


GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


@pytest.mark.parametrize("hidden", [None, 6])
@pytest.mark.parametrize("family", PEFT)
def test_stock_peft_gives_the_same_logits_and_answers(family, hidden, tmp_path):
    network = with_prefix(family, length=7, hidden=hidden)
    assert prefix.why_not_peft(network) is None
    prefix.save(network, tmp_path)
    stock = peft.PeftModel.from_pretrained(network_of(family), str(tmp_path)).eval()
    ids = some_ids(2, 9)
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    assert far(logits_of(stock, ids), logits_of(network, ids)) < NEAR
    padded = [logits_of(n, ids, attention_mask=mask, position_ids=places)[mask.bool()] for n in (stock, network)]
    assert far(*padded) < NEAR
    answers = network.generate(input_ids=ids, **GREEDY)
    assert torch.equal(logits_of(stock, answers[:, :-1]).argmax(-1)[:, ids.shape[1] - 1 :], answers[:, ids.shape[1] :])
    # without the rotation PEFT would see other distances
    stock.prompt_encoder["default"].embedding.weight.data = prefix.encoder_of(network).values().detach()
    assert far(logits_of(stock, ids), logits_of(network, ids)) > 0.01


@pytest.mark.xfail(raises=FutureWarning, strict=True, reason="peft 0.21 names its cache as transformers 5.23 did")
def test_stock_peft_generates_the_same_answers(tmp_path):
    network = with_prefix("glm", length=7)
    prefix.save(network, tmp_path)
    stock = peft.PeftModel.from_pretrained(network_of("glm"), str(tmp_path)).eval()
    ids = some_ids(2, 9)
    assert torch.equal(stock.generate(input_ids=ids, **GREEDY), network.generate(input_ids=ids, **GREEDY))


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("family", PEFT)
def test_adapters_that_peft_has_made_are_read(family, projected, tmp_path):
    torch.manual_seed(4)
    sizes = {"num_virtual_tokens": 5, "prefix_projection": projected, "encoder_hidden_size": 6}
    stock = peft.get_peft_model(network_of(family), peft.PrefixTuningConfig(task_type="CAUSAL_LM", **sizes)).eval()
    stock.save_pretrained(str(tmp_path))
    loaded = prefix.load(network_of(family), tmp_path)
    assert far(logits_of(loaded, some_ids(2, 9)), logits_of(stock, some_ids(2, 9))) < NEAR
    other = network_of(family)
    other.config.model_type = "olmo"
    with pytest.raises(UserError, match="'olmo'"):
        prefix.load(other, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no whole prefix of PEFT"):
        prefix.load(network_of(family), tmp_path)


@pytest.mark.parametrize(
    ("family", "why"), [("chatglm", "two dimensions"), ("glm4_moe_lite", "its cache holds latents")]
)
def test_what_peft_cannot_read_is_not_written(family, why, tmp_path):
    network = with_prefix(family)
    assert why in str(prefix.why_not_peft(network))
    prefix.save(network, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"prefix_encoder.json", "prefix_encoder.safetensors"}


def test_frequencies_that_depend_on_the_length_cannot_be_rotated_once(monkeypatch):
    network = with_prefix("llama")
    monkeypatch.setattr(network.model.rotary_emb, "rope_type", "dynamic")
    assert "change with the length" in str(prefix.why_not_peft(network))
    monkeypatch.setattr(network.config, "model_type", "olmo")
    assert "'olmo'" in str(prefix.why_not_peft(network))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "chatglm"])
def test_a_prefix_of_a_text_acts_as_the_text_does(family):
    network = with_prefix(family, length=7)
    text, rows = some_ids(1, 7, seed=9), some_ids(2, 8)
    prefix.encoder_of(network).set_layers(prefix.layers_of_text(network, text[0]))
    want = logits_of(network_of(family), torch.cat([text.expand(2, -1), rows], dim=1))[:, 7:]
    assert far(logits_of(network, rows), want) < NEAR


def test_a_prefix_of_a_text_is_a_context_of_chatglm_6b():
    """The base over text and row at once, told by hand that the text does not see the row."""
    network = with_prefix("chatglm", length=7)
    text, row = some_ids(1, 7, seed=9), some_ids(1, 8)
    prefix.encoder_of(network).set_layers(prefix.layers_of_text(network, text[0]))
    base = network_of("chatglm")
    places = positions(row, None, base.config)
    context = places[0, 1] == 0
    seen = torch.ones(15, 15, dtype=torch.bool)
    seen[:7, 7:] = False
    seen[7:, 7:] = torch.ones(8, 8, dtype=torch.bool).tril() | context[None, :]
    in_text = torch.stack([torch.arange(7), torch.zeros(7, dtype=torch.long)])[None]
    moved = places + torch.tensor([[[7], [0]]])
    inputs = {"position_ids": torch.cat([in_text, moved], dim=-1), "attention_mask": seen[None, None]}
    want = logits_of(base, torch.cat([text, row], dim=1), **inputs)[:, 7:]
    assert far(logits_of(network, row), want) < NEAR


def official(folder: Path, state: dict[str, Tensor], **config) -> Path:
    torch.save({f"transformer.prefix_encoder.{name}": tensor for name, tensor in state.items()},
               folder / "pytorch_model.bin")  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("hidden", [None, 6])
def test_official_checkpoints_come_and_go(hidden, tmp_path):
    state = encoder_for(network_of("glm"), hidden=hidden).state_dict()
    folder = official(tmp_path, state, model_type="chatglm", pre_seq_len=5, prefix_projection=hidden is not None)
    network = prefix.load(network_of("glm"), folder)
    assert far(logits_of(network, some_ids(2, 9)), logits_of(with_prefix("glm", hidden=hidden), some_ids(2, 9))) == 0
    back = tmp_path / "back"
    back.mkdir()
    prefix.save_official(network, back)
    written = torch.load(back / "pytorch_model.bin", weights_only=True)
    assert written.keys() == {f"transformer.prefix_encoder.{name}" for name in state}
    config = json.loads((back / "config.json").read_text(encoding="utf-8"))
    assert config == {"pre_seq_len": 5, "prefix_projection": hidden is not None}


@pytest.mark.parametrize("halves", [False, True])
def test_a_prefix_of_another_network_is_refused_with_both_sizes(halves, tmp_path):
    if halves:
        official(tmp_path, {"embedding.weight": torch.zeros(3, 96)}, pre_seq_len=3)
        words = "its prefix has 96 numbers a token, this network needs 192"
    else:
        prefix.save(with_prefix("chatglm"), tmp_path)
        words = "num_heads 4, key_dim 16, value_dim 16, this one has num_layers 3, num_heads 2"
    with pytest.raises(UserError, match=words):
        prefix.load(network_of("glm"), tmp_path)


def test_torn_and_foreign_files_are_told(tmp_path):
    prefix.save(with_prefix("glm"), tmp_path)
    (tmp_path / "prefix_encoder.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="holds no whole prefix"):
        prefix.load(network_of("glm"), tmp_path)
    other = tmp_path / "official"
    other.mkdir()
    official(other, {}, pre_seq_len=3)
    with pytest.raises(UserError, match=r"holds no transformer\.prefix_encoder\.embedding\.weight"):
        prefix.load(network_of("glm"), other)
    (other / "pytorch_model.bin").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read"):
        prefix.load(network_of("glm"), other)
    assert not prefix.is_prefix(tmp_path / "nowhere")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_in_few_bits_takes_a_prefix(bits, tmp_path):
    network_of("glm").save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4", load_in_8bit=bits == 8)
    loaded = [
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float32).eval()
        for _ in range(2)
    ]
    base, network = loaded
    for each in loaded:
        keep_trainable(each)
    ids = some_ids(2, 9)
    before = logits_of(base, ids)
    encoder = encoder_for(network)
    prefix.attach(network, encoder)
    encoder.enabled = False
    assert torch.equal(logits_of(network, ids), before)
    encoder.enabled = True
    mask = torch.ones(2, 14, dtype=torch.long)
    inputs = {"attention_mask": mask, "position_ids": torch.arange(9).expand(2, -1)}
    with torch.no_grad():
        want = base(input_ids=ids, cache=cache_of(encoder, rows=2), **inputs).logits
    assert far(logits_of(network, ids), want) < NEAR
    network.requires_grad_(False)
    encoder.requires_grad_(True)
    network.train()(input_ids=ids, use_cache=False).logits.logsumexp(-1).mean().backward()
    assert encoder.embedding.weight.grad.abs().sum() > 0
    prefix.save(network, tmp_path)
    assert torch.equal(logits_of(prefix.load(base, tmp_path), ids), logits_of(network.eval(), ids))


# THUDM/ChatGLM-6B and ChatGLM2-6B, ptuning/README.md and modeling_chatglm.py: pre_seq_len 128, Embedding(128, 28 * 4096
# * 2) and Embedding(128, 28 * 256 * 2); ChatGLM3-6B has the sizes of ChatGLM2-6B.
CHATGLM2 = {
    "num_hidden_layers": 28, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128,
    "intermediate_size": 13696, "vocab_size": 65024, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(("config", "count"), [(ChatGLMConfig(), 29_360_128), (GlmConfig(**CHATGLM2), 1_835_008)])
def test_the_published_number_of_parameters(config, count):
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
        encoder = prefix.PrefixEncoder(prefix.Geometry.of(skeleton), length=128)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == count
