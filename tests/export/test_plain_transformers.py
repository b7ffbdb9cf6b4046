"""An exported folder in a process that has none of this program: the same answers, stops and ids."""

import json
import subprocess
import sys

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny_families import config_of
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import glm_lightning as gl
from glm_lightning import templates
from glm_lightning.export import export_model

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "the quick brown fox 你好"},
    {"role": "assistant", "content": "I am an assistant."},
    {"role": "user", "content": "who are you"},
]
FAMILIES = {"glm": "glm4", "glm4": "glm4_0414", "glm4_moe": "glm4_5", "glm4_moe_lite": "glm4_7"}

PROGRAM = """
import json, sys
sys.modules["glm_lightning"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
answers = {}
for folder in sys.argv[2:]:
    network, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        json.loads(sys.argv[1]), add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    out = network.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
    length = inputs["input_ids"].shape[1]
    answers[folder] = [out[:length].tolist(), out[length:].tolist(), network.generation_config.eos_token_id]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def exported(glm4_tokenizer, tmp_path_factory):
    """A folder of each family with an adapter of random numbers, and what comes out of it."""
    place = tmp_path_factory.mktemp("families")
    made = {}
    for family, name in FAMILIES.items():
        torch.manual_seed(0)
        config = config_of(family)
        config.update({"vocab_size": 448, "pad_token_id": 0, "eos_token_id": [0, 7, 9]})
        network = AutoModelForCausalLM.from_config(config)
        for parameter in network.parameters():
            parameter.data.normal_(std=0.2)
        network.save_pretrained(place / family)
        glm4_tokenizer.save(place / family)
        template = templates.find(name, glm4_tokenizer, family).chat_template
        (place / family / "chat_template.jinja").write_text(template, encoding="utf-8")
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj", "kv_b_proj"], task_type="CAUSAL_LM")
        network.name_or_path = str(place / family)
        adapted = peft.get_peft_model(network, config)
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                parameter.data.normal_(std=0.2)
        adapted.save_pretrained(place / f"{family}-adapter")
        export_model(place / f"{family}-adapter", place / f"{family}-out")
        made[family] = place / f"{family}-adapter", place / f"{family}-out"
    return made


@pytest.fixture(scope="module")
def answers(exported, tmp_path_factory):
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        PROGRAM,
        json.dumps(MESSAGES),
        *(str(out) for _, out in exported.values()),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("elsewhere"), check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_answers(family, exported, answers):
    adapter, out = exported[family]
    live = gl.load(adapter)
    assert live.template.name == FAMILIES[family]
    prompt, answer, stops = answers[str(out)]
    assert prompt == live.prompt(MESSAGES)
    assert stops == live.stop_ids
    ours = live.generate(MESSAGES, max_new_tokens=12)
    ended = [i for i, token in enumerate(answer) if token in stops]
    text = live.tokenizer.decode(answer[: ended[0]] if ended else answer)
    assert live.template.clean(text) == ours
    assert gl.load(out).generate(MESSAGES, max_new_tokens=12) == ours
    ids = torch.tensor([prompt])
    with torch.no_grad():
        base, merged = (gl.load(folder).model(ids).logits for folder in (adapter.with_name(family), out))
        assert (base - merged).abs().max() > 0.1
        assert (live.model(ids).logits - merged).abs().max() < 1e-4


# by vllm/model_executor/models/registry.py
KNOWN_TO_VLLM = {
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_ends_an_answer_and_makes_a_prompt_in_vllm(family, exported):
    """It stops at the tokenizer's end token and at those of generation_config.json; the template is the tokenizer's."""
    folder = exported[family][1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops = gl.load(folder).stop_ids
    assert tokenizer.eos_token_id in stops
    assert GenerationConfig.from_pretrained(folder).eos_token_id == stops
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert prompt == gl.load(folder).prompt(MESSAGES)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_have_the_names_that_vllm_packs(family, exported):
    """Its loaders put these together themselves: q, k and v, and of experts, which lie one by one, gate and up."""
    names = set(load_file(exported[family][1] / "model.safetensors"))
    layer = "model.layers.1."
    attention = {f"{layer}self_attn.{each}_proj.weight" for each in "qkvo"}
    assert attention <= names or family == "glm4_moe_lite"
    if "moe" in family:
        assert {f"{layer}mlp.experts.0.{each}_proj.weight" for each in ("gate", "up", "down")} <= names
        assert f"{layer}mlp.gate.e_score_correction_bias" in names
    else:
        assert {f"{layer}mlp.{each}_proj.weight" for each in ("gate_up", "down")} <= names


@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_that_servers_ask_for(family, exported):
    folder = exported[family][1]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [KNOWN_TO_VLLM[family]]
    assert (config["model_type"], config["dtype"]) == (family, "float32")
    names = {file.name for file in folder.iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md", "glm_lightning.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
