"""The official layout of ChatGLM2, ChatGLM3 and GLM-4: hermetic, by writing such folders by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rewriting import rewrite
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GlmForCausalLM

from glm_lightning.models import Source, official
from glm_lightning.types import UserError

RAW: dict[str, Any] = {
    "_name_or_path": "THUDM/chatglm3-6b",
    "model_type": "chatglm",
    "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": 128,
    "hidden_size": 64,
    "kv_channels": 16,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 2,
    "original_rope": True,
    "padded_vocab_size": 96,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 64,
    "torch_dtype": "float16",
    "transformers_version": "4.30.2",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
IDS = torch.arange(3, 40)[None]


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """A state dict under the official names."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / 6).half()

    state = {
        "transformer.embedding.word_embeddings.weight": make(96, 64),
        "transformer.rotary_pos_emb.inv_freq": torch.ones(4).half(),
    }
    for i in range(2):
        layer = f"transformer.encoder.layers.{i}"
        state |= {
            f"{layer}.input_layernorm.weight": 1 + make(64),
            f"{layer}.self_attention.query_key_value.weight": make(64 + 32 + 32, 64),
            f"{layer}.self_attention.query_key_value.bias": make(128),
            f"{layer}.self_attention.dense.weight": make(64, 64),
            f"{layer}.post_attention_layernorm.weight": 1 + make(64),
            f"{layer}.mlp.dense_h_to_4h.weight": make(256, 64),
            f"{layer}.mlp.dense_4h_to_h.weight": make(64, 128),
        }
    return state | {
        "transformer.encoder.final_layernorm.weight": 1 + make(64),
        "transformer.output_layer.weight": make(96, 64),
    }


Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Write an official folder: two shards of `.bin`, cut inside a layer."""

    def make(state: dict[str, Tensor] | None = None, *, name: str = "model", **keys: Any) -> Path:
        made = tmp_path / name
        made.mkdir()
        state = tensors() if state is None else state
        names = list(state)
        cut = len(names) // 2
        files: dict[str, str] = {}
        for number, part in enumerate((names[:cut], names[cut:]), start=1):
            file = f"pytorch_model-0000{number}-of-00002.bin"
            torch.save({key: state[key] for key in part}, made / file)
            files |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": files}
        (made / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
        (made / "config.json").write_text(json.dumps(RAW | keys), encoding="utf-8")
        return made

    return make


def naive(state: dict[str, Tensor], ids: Tensor, *, base: float = 10000.0, scale: float = 1.0) -> Tensor:
    """The network once more, from its description: loops over heads and positions, float64."""
    state = {key: value.double() for key, value in state.items()}
    hidden = state["transformer.embedding.word_embeddings.weight"][ids[0]]

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def rotated(x: Tensor, position: int) -> Tensor:
        x = x.clone()
        for pair in range(4):  # the first half of a head of 16, in neighbouring pairs
            angle = torch.tensor(position / scale / base ** (2 * pair / 8), dtype=torch.float64)
            a, b = x[2 * pair].clone(), x[2 * pair + 1].clone()
            x[2 * pair] = a * angle.cos() - b * angle.sin()
            x[2 * pair + 1] = b * angle.cos() + a * angle.sin()
        return x

    for i in range(2):
        layer = f"transformer.encoder.layers.{i}"
        x = normed(hidden, state[f"{layer}.input_layernorm.weight"])
        qkv = x @ state[f"{layer}.self_attention.query_key_value.weight"].T
        qkv = qkv + state[f"{layer}.self_attention.query_key_value.bias"]
        rows = []
        for t in range(len(x)):
            heads = []
            for head in range(4):
                group = head // 2
                query = rotated(qkv[t, 16 * head : 16 * head + 16], t)
                keys = [rotated(qkv[s, 64 + 16 * group : 80 + 16 * group], s) for s in range(t + 1)]
                values = qkv[: t + 1, 96 + 16 * group : 112 + 16 * group]
                weights = (torch.stack(keys) @ query / 4).softmax(0)
                heads.append(weights @ values)
            rows.append(torch.cat(heads))
        hidden = hidden + torch.stack(rows) @ state[f"{layer}.self_attention.dense.weight"].T
        x = normed(hidden, state[f"{layer}.post_attention_layernorm.weight"])
        gate, up = (x @ state[f"{layer}.mlp.dense_h_to_4h.weight"].T).chunk(2, dim=-1)
        hidden = hidden + (torch.nn.functional.silu(gate) * up) @ state[f"{layer}.mlp.dense_4h_to_h.weight"].T
    hidden = normed(hidden, state["transformer.encoder.final_layernorm.weight"])
    return hidden @ state["transformer.output_layer.weight"].T


@pytest.mark.parametrize("ratio", [None, 50])
def test_the_network_is_the_described_one(folder: Folder, ratio: int | None) -> None:
    source = Source(path=str(folder(**({"rope_ratio": ratio} if ratio else {}))))
    network = source.load(dtype="float64").eval()
    assert type(network) is GlmForCausalLM
    expected = naive(tensors(), IDS, base=10000.0 * (ratio or 1))
    assert (network(IDS).logits[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("ratio", [4, 16])
def test_the_ratio_of_chatglm2_divides_the_positions(folder: Folder, tmp_path: Path, ratio: int) -> None:
    source = Source(path=str(folder(_name_or_path="THUDM/chatglm2-6b-32k", rope_ratio=ratio)))
    logits = source.load(dtype="float64").eval()(IDS).logits[0]
    assert (logits - naive(tensors(), IDS, base=10000.0, scale=ratio)).abs().max() < 1e-5
    rewrite(Path(source.path), tmp_path / "back")
    again = Source(path=str(tmp_path / "back"))
    assert again.raw_config["rope_ratio"] == ratio
    assert torch.equal(again.load(dtype="float64").eval()(IDS).logits[0], logits)
    without_original = official.raw_config(source.config)
    assert without_original["rope_ratio"] == ratio
    assert official.config(without_original).to_dict() == source.config.to_dict()
    source.load().save_pretrained(tmp_path / "native")
    assert torch.equal(Source(path=str(tmp_path / "native")).load(dtype="float64").eval()(IDS).logits[0], logits)


def test_a_ratio_that_nothing_explains_is_refused(folder: Folder) -> None:
    assert Source(path=str(folder(_name_or_path="x", transformers_version=None))).config
    with pytest.raises(UserError, match=r"rope_ratio is 4, .*write chatglm2 or chatglm3 into _name_or_path"):
        Source(path=str(folder(_name_or_path="x", transformers_version=None, rope_ratio=4, name="x"))).check()


def test_weights_keep_their_type(folder: Folder) -> None:
    assert {p.dtype for p in Source(path=str(folder())).load().parameters()} == {torch.float16}


def test_it_saves_as_a_native_folder_by_default(folder: Folder, tmp_path: Path) -> None:
    network = Source(path=str(folder())).load()
    network.save_pretrained(tmp_path / "native")
    config = json.loads((tmp_path / "native" / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["architectures"]) == ("glm", ["GlmForCausalLM"])
    again = GlmForCausalLM.from_pretrained(tmp_path / "native")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in network.state_dict().items())


def test_a_ratio_of_null_is_none_and_any_other_must_be_a_number(folder: Folder) -> None:
    assert Source(path=str(folder(rope_ratio=None))).config == Source(path=str(folder(name="y"))).config
    for name, ratio in (("zero", 0), ("text", "4")):
        with pytest.raises(UserError, match=rf"rope_ratio is {ratio!r}: must be a number above 0, or null"):
            Source(path=str(folder(name=name, rope_ratio=ratio))).check()


@pytest.mark.parametrize("ratio", [{}, {"rope_ratio": 500}])
def test_it_goes_back_to_the_official_layout_bit_for_bit(folder: Folder, tmp_path: Path, ratio: dict[str, int]) -> None:
    source = Source(path=str(folder(**ratio)))
    rewrite(Path(source.path), tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8")) == RAW | ratio
    back = load_file(tmp_path / "back" / "model.safetensors")
    state = tensors()
    assert back.pop("transformer.rotary_pos_emb.inv_freq").dtype == torch.float16
    assert back.keys() == state.keys() - {"transformer.rotary_pos_emb.inv_freq"}
    assert all(torch.equal(value, state[name]) for name, value in back.items())
    again = Source(path=str(tmp_path / "back")).load(dtype="float32")
    assert torch.equal(again(IDS).logits, source.load(dtype="float32")(IDS).logits)


def test_a_native_folder_can_be_written_in_the_official_layout(folder: Folder, tmp_path: Path) -> None:
    source = folder(rope_ratio=500)
    rewrite(source, tmp_path / "native", layout="native")
    assert json.loads((tmp_path / "native" / "config.json").read_text(encoding="utf-8"))["model_type"] == "glm"
    rewrite(tmp_path / "native", tmp_path / "back", origin=source)
    again = json.loads((tmp_path / "back" / "config.json").read_text(encoding="utf-8"))
    assert again == RAW | {"rope_ratio": 500}
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[name], value) for name, value in tensors().items() if "inv_freq" not in name)


def test_missing_and_misshapen_weights_are_refused(folder: Folder) -> None:
    state = tensors()
    del state["transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"]
    with pytest.raises(UserError, match=r"lack 1 weights of the network: model.layers.1.mlp.down_proj.weight"):
        Source(path=str(folder(state, name="a"))).load()
    state = tensors() | {"transformer.output_layer.weight": torch.zeros(95, 64).half()}
    with pytest.raises(UserError, match=r"another shape than config.json says: lm_head.weight \(95, 64\) for"):
        Source(path=str(folder(state, name="b"))).load()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"quantization_bit": 4}, "quantised to 4 bits by its makers.*THUDM/chatglm3-6b.* quantize=nf4"),
        ({"quantization_bit": 8}, "quantised to 8 bits.*quantize=int8"),
        ({"vision_config": {}}, "vision part"),
        ({"rmsnorm": False}, "rmsnorm is False, not True"),
        ({"add_bias_linear": True, "original_rope": False}, "add_bias_linear is True.*original_rope is False"),
    ],
)
def test_what_is_not_this_architecture_is_refused_before_loading(
    folder: Folder, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Source(path=str(folder(**keys))).check()


def test_a_chatglm_of_neither_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "chatglm"}', encoding="utf-8")
    with pytest.raises(UserError, match="neither the keys of ChatGLM-6B"):
        Source(path=str(tmp_path)).check()


@pytest.mark.parametrize(
    ("keys", "generation"),
    [
        ({}, "chatglm3"),
        ({"_name_or_path": "/models/mine"}, "chatglm3"),
        ({"_name_or_path": "/models/mine", "transformers_version": "4.27.1"}, "chatglm2"),
        ({"_name_or_path": "THUDM/chatglm2-6b", "transformers_version": "4.31"}, "chatglm2"),
        ({"_name_or_path": "mine", "transformers_version": None}, None),
        ({"padded_vocab_size": 151552}, "glm4"),
        ({"eos_token_id": [1, 2, 3]}, "glm4"),
    ],
)
def test_the_generation_is_told_from_the_content(folder: Folder, keys: dict[str, Any], generation: str | None) -> None:
    made = folder(name="chatglm-6b-of-no-meaning")
    (made / "config.json").write_text(json.dumps(RAW | keys), encoding="utf-8")
    assert Source(path=str(made)).generation == generation


@pytest.mark.parametrize("quantize", ["nf4", "fp4", "int8"])
def test_linear_layers_are_quantised_while_loading(folder: Folder, quantize: Any) -> None:
    path = str(folder())
    full, small = Source(path=path).load(), Source(path=path, quantize=quantize).load()
    stored = {name: p.numel() * p.element_size() for name, p in small.named_parameters() if "proj.weight" in name}
    assert len(stored) == 12
    share = sum(stored.values()) / sum(p.numel() * 2 for n, p in full.named_parameters() if "proj.weight" in n)
    assert share == (0.5 if quantize == "int8" else 0.25)
    assert small.lm_head.weight.dtype == small.model.embed_tokens.weight.dtype == torch.float16
    full, small = Source(path=path).load(dtype="float32"), Source(path=path, quantize=quantize).load(dtype="float32")
    with torch.no_grad():
        exact, logits = full.eval()(IDS).logits, small.eval()(IDS).logits
    assert 0 < (logits - exact).norm() / exact.norm() < (0.05 if quantize == "int8" else 0.6)


def test_training_goes_on_after_an_evaluation_in_4_bits(folder: Folder) -> None:
    network = Source(path=str(folder()), quantize="nf4").load(dtype="float32")
    embedded = network.get_input_embeddings()(IDS).detach()

    def gradient() -> Tensor:
        inputs = embedded.clone().requires_grad_()
        network(inputs_embeds=inputs).logits.square().sum().backward()
        assert inputs.grad is not None
        return inputs.grad

    before = gradient()
    with torch.no_grad():
        network.eval()(IDS)
    network.train()
    assert torch.equal(gradient(), before)


def test_safetensors_load_as_well(tmp_path: Path) -> None:
    made = tmp_path / "model"
    made.mkdir()
    save_file(tensors(), made / "model.safetensors")
    (made / "config.json").write_text(json.dumps(RAW), encoding="utf-8")
    network = Source(path=str(made)).load(dtype="float64").eval()
    assert (network(IDS).logits[0] - naive(tensors(), IDS)).abs().max() < 1e-5


def test_sampling_flags_alone_mean_sampling_and_can_be_saved(folder: Folder, tmp_path: Path) -> None:
    made = folder()
    (made / "generation_config.json").write_text('{"temperature": 0.8, "top_p": 0.8}', encoding="utf-8")
    network = Source(path=str(made)).load()
    network.save_pretrained(tmp_path / "out")
    assert network.generation_config.do_sample
