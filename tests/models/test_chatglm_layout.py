"""ChatGLM-6B's folders: official and old, saved and read again, quantised, adapted, and found by transformers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import bitsandbytes
import peft
import pytest
import torch
from rewriting import rewrite
from safetensors.torch import load_file, save_file
from tiny_chatglm import config, network, padded, samples
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from glm_lightning.models import Source, chatglm
from glm_lightning.models.chatglm import ChatGLMConfig, ChatGLMForCausalLM, ChatGLMModel
from glm_lightning.objectives.supervised import token_sums
from glm_lightning.types import Batch

RAW = {
    "_name_or_path": "THUDM/chatglm-6b", "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"}, "bos_token_id": 130004,
    "eos_token_id": 130005, "mask_token_id": 130000, "gmask_token_id": 130001, "pad_token_id": 3, "hidden_size": 16,
    "inner_hidden_size": 32, "layernorm_epsilon": 1e-05, "max_sequence_length": 64, "model_type": "chatglm",
    "num_attention_heads": 2, "num_layers": 1, "position_encoding_2d": True, "torch_dtype": "float16",
    "transformers_version": "4.23.1", "use_cache": True, "vocab_size": 130528,
}  # fmt: skip
OLD = {k: v for k, v in RAW.items() if k not in ("mask_token_id", "gmask_token_id")} | {
    "bos_token_id": 150004, "eos_token_id": 150005, "pad_token_id": 20003, "vocab_size": 150528,
}  # fmt: skip
IDS = padded(samples())[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official folder of a tiny network in float16, in .bin shards."""
    path = tmp_path_factory.mktemp("chatglm-6b")
    made = network(dtype=torch.float16)
    write(path, official_tensors(made), chatglm.raw_config(made.config))
    return path


def official_tensors(made: Any) -> dict[str, Tensor]:
    """All that the official files hold: the head once more, and what the official code stores."""
    return {name: tensor.clone() for name, tensor in made.state_dict().items()} | chatglm.constants(made.config)


def write(path: Path, tensors: dict[str, Tensor], raw: dict[str, Any], *, kind: str = "bin") -> None:
    """A folder of three shards, which cut through layers."""
    stem, index = ("pytorch_model", "pytorch_model.bin.index.json") if kind == "bin" else ("model", "")
    index = index or "model.safetensors.index.json"
    weight_map = {}
    for number in range(3):
        name = f"{stem}-0000{number + 1}-of-00003.{kind}"
        part = {key: tensors[key].clone() for key in sorted(tensors)[number::3]}
        if kind == "bin":
            torch.save(part, path / name)
        else:
            save_file(part, path / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (path / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}), encoding="utf-8")
    (path / "config.json").write_text(json.dumps(raw), encoding="utf-8")


@torch.no_grad()
def logits(made: Any, ids: Tensor = IDS) -> Tensor:
    result: Tensor = made(input_ids=ids, use_cache=False).logits
    return result


def test_transformers_finds_the_classes(folder: Path) -> None:
    importlib.reload(chatglm)
    assert type(AutoConfig.from_pretrained(folder)) is ChatGLMConfig
    made, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(made) is ChatGLMForCausalLM
    assert not any(report.values())
    assert made.dtype == torch.float16
    assert made.lm_head.weight is made.transformer.word_embeddings.weight
    base = AutoModel.from_pretrained(folder)
    assert type(base) is ChatGLMModel
    assert torch.equal(base(input_ids=IDS)[0], made.transformer(input_ids=IDS)[0])


def test_what_is_saved_is_what_was_loaded(folder: Path, tmp_path: Path) -> None:
    made: Any = Source(path=str(folder)).load()
    made.save_pretrained(tmp_path / "transformers", max_shard_size="50KB")
    again: Any = Source(path=str(tmp_path / "transformers")).load()
    assert torch.equal(logits(made), logits(again))
    same = {"architectures": None, "_name_or_path": None}
    assert again.config.to_dict() | same == made.config.to_dict() | same
    rewrite(tmp_path / "transformers", tmp_path / "official", origin=folder)
    found = load_file(tmp_path / "official" / "model.safetensors")
    expected = {name: tensor for file in folder.glob("*.bin") for name, tensor in torch.load(file).items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    official = json.loads((tmp_path / "official" / "config.json").read_text(encoding="utf-8"))
    assert official == json.loads((folder / "config.json").read_text(encoding="utf-8"))


def test_a_configuration_keeps_its_official_keys_and_has_the_usual_names() -> None:
    read = chatglm.config(RAW)
    saved = json.loads(read.to_json_string())
    assert saved["architectures"] == ["ChatGLMModel"]
    for key in RAW.keys() - {"_name_or_path", "auto_map", "transformers_version"}:
        assert saved[key] == RAW[key], key
    assert not {"auto_map", "dtype", "num_hidden_layers"} & saved.keys()
    assert (read.num_hidden_layers, read.intermediate_size, read.max_position_embeddings) == (1, 32, 64)
    assert read.dtype == torch.float16
    assert read.tie_word_embeddings
    written = chatglm.raw_config(read, original=RAW)
    assert list(written.items()) == list(RAW.items())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"_name_or_path": "THUDM/chatglm2-6b"}, "ChatGLM2-6B"),
        ({"_name_or_path": "THUDM/chatglm3-6b"}, "ChatGLM3-6B"),
        ({"eos_token_id": [151329, 151336, 151338], "padded_vocab_size": 151552}, "GLM-4-9B"),
        ({}, "ChatGLM2-6B or ChatGLM3-6B"),
    ],
)
def test_other_generations_are_refused_by_name(change: dict[str, Any], name: str, tmp_path: Path) -> None:
    raw = {"model_type": "chatglm", "padded_vocab_size": 65024, "num_layers": 1, "eos_token_id": 2, **change}
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ValueError, match=f"padded_vocab_size is a key of {name}, "):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"padded_vocab_size is a key of {name}, "):
        ChatGLMConfig(**raw)


def test_positions_of_one_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match="position_encoding_2d"):
        chatglm.config({**RAW, "position_encoding_2d": False})


def test_old_configurations_are_renumbered() -> None:
    assert chatglm.is_old(OLD)
    assert not chatglm.is_old(RAW)
    assert not chatglm.is_old({**RAW, "vocab_size": 150528})  # resized, with the new ids
    before = dict(OLD)
    new = chatglm.config(OLD)
    assert before == OLD
    assert not chatglm.is_old(new.to_dict())
    for key in RAW.keys() - {"_name_or_path", "auto_map", "torch_dtype", "transformers_version"}:
        assert getattr(new, key) == RAW[key], key
    assert chatglm.config({**OLD, "pad_token_id": 3}).pad_token_id == 3


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_old_weights_lose_the_rows_of_images(tmp_path: Path, kind: str, quantize: Any) -> None:
    sizes = {"hidden_size": 64, "inner_hidden_size": 64}
    torch.manual_seed(0)
    made = ChatGLMForCausalLM(chatglm.config(RAW | sizes)).half().eval()
    tensors = official_tensors(made)
    for name in ("transformer.word_embeddings.weight", "lm_head.weight"):
        tensors[name] = torch.cat([torch.full((20_000, 64), 9.0).half(), tensors[name]])
    write(tmp_path, tensors, OLD | sizes, kind=kind)
    read: Any = Source(path=str(tmp_path), quantize=quantize).load()
    assert read.config.vocab_size == 130528
    for name in ("transformer.word_embeddings.weight", "lm_head.weight"):
        assert torch.equal(read.get_parameter(name), made.get_parameter(name))
        assert read.get_parameter(name).untyped_storage().nbytes() == 130528 * 64 * 2
    if quantize is None:
        ids = torch.tensor([[7, 8, 130001, 130004, 9]])
        assert torch.equal(logits(read, ids), logits(made, ids))
        read.save_pretrained(tmp_path / "new")
        again: Any = Source(path=str(tmp_path / "new")).load()
        assert torch.equal(logits(again, ids), logits(made, ids))
        saved = load_file(tmp_path / "new" / "model.safetensors")
        assert saved["transformer.word_embeddings.weight"].shape[0] == 130528


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantised_while_loading(folder: Path, quantize: Any) -> None:
    made: Any = Source(path=str(folder), quantize=quantize, dtype="float32").load()
    exact = ChatGLMForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert made.lm_head.weight is made.transformer.word_embeddings.weight
    assert torch.equal(made.lm_head.weight, exact.lm_head.weight)
    for name, module in exact.transformer.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            held = made.transformer.layers.get_submodule(name)
            assert type(held).__name__ == ("Linear8bitLt" if quantize == "int8" else "Linear4bit")
            read = held.weight.CB * held.weight.SCB[:, None] / 127 if quantize == "int8" else dequantised(held.weight)
            assert 0 < (read - module.weight).norm() / module.weight.norm() < (0.01 if quantize == "int8" else 0.12)
            module.weight.data = read
    # int8 rounds what a layer is given, too
    assert (logits(made) - logits(exact)).norm() / logits(exact).norm() < (0.1 if quantize == "int8" else 1e-5)


def dequantised(weight: Any) -> Tensor:
    result: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return result


def test_adapters_find_their_target(folder: Path, tmp_path: Path) -> None:
    base = ChatGLMForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False))
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * 2
    assert all("query_key_value.lora_" in name for name in names)
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path)
    fresh = ChatGLMForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not torch.equal(logits(fresh), expected)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(fresh, tmp_path)), expected)


@pytest.mark.parametrize("adapted", [False, True])
def test_the_objective_has_the_loss_and_gradients_of_the_network(adapted: bool) -> None:
    made: Any = network().train()
    if adapted:
        made = peft.get_peft_model(made, peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False)).double()
    labels = IDS.masked_fill(IDS == 3, -100)
    labels[:, :2] = -100
    sums = token_sums(made, Batch.of(IDS, labels, (IDS != 3).sum(-1), step_tokens=1, rows=[]))
    # not the network's own, which is taken in float32
    output = made(input_ids=IDS, use_cache=False).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(output, labels[:, 1:].flatten(), ignore_index=-100)
    parameters = [parameter for parameter in made.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(sums.total / sums.num_tokens, parameters)
    torch.testing.assert_close(sums.total / sums.num_tokens, loss)
    for one, two in zip(ours, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, two)


def test_packed_rows_have_the_loss_of_their_samples() -> None:
    made = network()
    rows = samples()
    ids = torch.tensor([[token for row in rows for token in row]])
    labels = ids.clone()
    places = torch.tensor([[place for row in rows for place in range(len(row))]])
    labels[places == 0] = -100
    batch = Batch.of(ids, labels, torch.tensor([ids.shape[1]]), step_tokens=1, rows=[], position_ids=places)
    alone = [made(input_ids=torch.tensor([row]), use_cache=False).logits[0, :-1] for row in rows]
    expected = torch.nn.functional.cross_entropy(torch.cat(alone), torch.cat([torch.tensor(row[1:]) for row in rows]))
    sums = token_sums(made, batch)
    torch.testing.assert_close(sums.total / sums.num_tokens, expected)


def test_a_device_map_places_whole_layers(folder: Path, tmp_path: Path) -> None:
    places: dict[str, Any] = {
        "transformer.word_embeddings": "cpu",
        "transformer.layers.0": "cpu",
        "transformer.layers.1": "disk",
        "transformer.final_layernorm": "cpu",
        "lm_head": "cpu",
    }
    made = ChatGLMForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map=places, offload_folder=tmp_path)
    assert made.transformer.layers[1].mlp.dense_h_to_4h.weight.device.type == "meta"
    exact = ChatGLMForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(logits(made), logits(exact))
    assert set(made._no_split_modules) == {"ChatGLMBlock"}


def test_defaults_are_the_release() -> None:
    release = ChatGLMConfig()
    assert (release.vocab_size, release.num_layers, release.bos_token_id) == (130528, 28, 130004)
    assert config().num_layers == 2
