"""The presets of what was published: each runs on a tiny network in the layout of its own model."""

import json
import shutil
from pathlib import Path

import pytest
from hydra.utils import get_class
from tiny_runs import ROOT

import glm_lightning
from glm_lightning import config
from glm_lightning.methods.base import Method
from glm_lightning.runs import RunFolder

SHARED = Path(__file__).resolve().parents[3] / "shared"
FILES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
PUBLISHED = [file.stem for file in FILES if "Published" in file.read_text(encoding="utf-8")]

FOLDERS = {
    "chatglm-6b": ("chatglm-6b", "ice_text.model"),
    "chatglm3-6b": ("chatglm3-6b", "tokenizer.model"),
    "glm-4-9b-chat": ("glm-4-9b-chat", "tokenizer.model"),
}

ROWS = [
    {"content": f"类型#裙*材质#棉*颜色#{colour}", "summary": f"这款{colour}色的裙子用棉做成，穿着舒适，很好看。"}
    for colour in "红橙黄绿青蓝紫黑白灰"
]


ALWAYS = ("adgen_chatglm_6b_ptuning_v2", "chatglm3_6b_lora", "qlora_24gb")
"""Presets that are run every time: one of each generation. Other tests train in full."""


@pytest.fixture
def folder_of(tmp_path):
    """Make a folder with tiny weights and the official tokenizer of a release."""

    def make(path):
        name = path.rpartition("/")[2]
        of_tokenizer, file = FOLDERS[name]
        folder = tmp_path / name
        shutil.copytree(SHARED / "golden" / "models" / "real-vocab" / name, folder)
        folder.chmod(0o755)
        shutil.copy(SHARED / "tokenizers" / of_tokenizer / file, folder)
        return folder

    return make


def test_there_is_a_preset_for_each_recipe():
    assert len(PUBLISHED) == 11
    assert {name.rpartition("_")[2] for name in PUBLISHED} == {"v2", "lora", "full", "12gb", "24gb"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_says_what_was_published_and_what_was_not_tried(name):
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    header = [line for line in text.splitlines() if line.startswith("# ")]
    assert any("Not yet run on a GPU" in line for line in header)
    assert any(f"experiment={name}" in line for line in header)
    assert any("Different here" in line or "Published there" in line for line in header)


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_rate_of_its_source_and_its_own_model(name):
    tree = config.compose([f"experiment={name}"])
    assert issubclass(get_class(tree.method._target_), Method)
    written = config.load(ROOT / "conf" / "experiment" / f"{name}.yaml")
    assert tree.optimizer.lr == written.optimizer.lr
    assert tree.optimizer.weight_decay == 0
    assert tree.model.path.startswith("zai-org/")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in ALWAYS else pytest.mark.slow) for n in PUBLISHED])
def test_runs_on_a_tiny_network_of_its_own_layout(name, folder_of, tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    tree = config.compose([f"experiment={name}"])
    folder = folder_of(tree.model.path)
    # the tiny networks are narrower than a block of 4 bits
    quantized = ["quantize=int8"] if tree.quantize else []
    glm_lightning.train([
        f"experiment={name}", f"model.path={folder}", f"data.train={rows}", "data.val=2", "data.test=2",
        f"data.cache_dir={tmp_path / 'cache'}", "data.batch_size=4", "data.max_length=128", "trainer.max_steps=2",
        "trainer.max_epochs=1", "trainer.val_check_interval=1.0", "trainer.accelerator=cpu", "logger=none",
        "evaluation.max_new_tokens=4", f"run_dir={tmp_path / 'run'}", *quantized,
    ])  # fmt: skip
    report = RunFolder(tmp_path / "run").read_report()
    assert report["steps"] == 2
    scores = {key for key in report["metrics"] if key.startswith("test/")}
    bleu = "bleu_4_characters" if "chatglm_6b" in name else "bleu_4_words"
    assert {f"test/{bleu}", "test/rouge_chinese_l"} <= scores
    # what is left behind goes onto the official folder again
    assert glm_lightning.load(tmp_path / "run").generate(
        [{"role": "user", "content": ROWS[0]["content"]}], max_new_tokens=4
    )
