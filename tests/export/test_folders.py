"""What an export writes is what was trained, whole or not at all."""

import json
import subprocess
import sys

import pytest
import torch

import glm_lightning as gl
from glm_lightning import cli
from glm_lightning.export import export_adapter, export_model
from glm_lightning.types import UserError

ASKED = [{"role": "user", "content": "the quick brown fox"}]


def logits(glm):
    with torch.no_grad():
        return glm.model(torch.tensor([glm.prompt(ASKED)])).logits


def test_a_merged_model_answers_as_the_run(train, tmp_path):
    run = train("run", "trainer.precision=32-true")
    exported = export_model(str(run.path), tmp_path / "out")
    merged, live = gl.load(tmp_path / "out"), gl.load(run.path)
    assert (logits(merged) - logits(live)).abs().max() < 1e-4
    assert "largest difference of a logit is" in exported.notice
    assert exported.notice in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == merged.stop_ids


def test_a_merged_model_needs_nothing_of_ours(train, tmp_path):
    run = train("run", "trainer.precision=32-true")
    export_model(str(run.path), tmp_path / "out")
    live = gl.load(run.path)
    ids = live.prompt(ASKED)
    program = (
        "import sys, torch; sys.modules['glm_lightning'] = None\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"folder = {str(tmp_path / 'out')!r}\n"
        "network = AutoModelForCausalLM.from_pretrained(folder)\n"
        "AutoTokenizer.from_pretrained(folder)\n"
        f"out = network.generate(torch.tensor([{ids}]), max_new_tokens=8, do_sample=False)\n"
        f"print(out[0, {len(ids)}:].tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    stops = [i for i, token in enumerate(answer) if token in live.stop_ids]
    text = live.template.clean(live.tokenizer.decode(answer[: stops[0]] if stops else answer))
    assert text == live.generate(ASKED, max_new_tokens=8)


def test_a_full_model_is_exported_in_another_type(train, tmp_path):
    run = train("run", "method=full", "trainer.precision=32-true")
    notice = export_model(str(run.path), tmp_path / "out", dtype="bfloat16").notice
    assert gl.load(tmp_path / "out", dtype="auto").model.dtype == torch.bfloat16
    assert "that comes from rounding the weights to bfloat16: before, the difference is 0.00e+00" in notice


def test_a_quantised_run_is_merged_into_full_precision_and_says_what_that_changes(train, tmp_path):
    run = train("run", "method=qlora", "trainer.precision=32-true")
    notice = export_model(str(run.path), tmp_path / "out").notice
    assert "learned on a quantised base" in notice
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_an_adapter_is_handed_on_as_it_is(train, tmp_path):
    run = train("run", "method=ptuning_v2", "method.prefix_length=4", "trainer.precision=32-true")
    export_adapter(str(run.path), tmp_path / "out")
    assert torch.equal(logits(gl.load(tmp_path / "out")), logits(gl.load(run.path)))


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("ptuning_v2", [], "cannot be folded into weights; export it with --adapter"),
        ("full", ["--adapter"], "holds a whole model and no adapter"),
        ("lora", ["--layout", "official"], "in transformers' own layout"),
    ],
)
def test_what_cannot_be_exported_is_refused(train, tmp_path, capsys, method, arguments, message):
    run = train("run", f"method={method}", "trainer.max_steps=1", "trainer.precision=32-true")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", str(run.path), str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(train, tmp_path):
    run = train("run", "trainer.max_steps=1")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="never overwrites"):
        export_model(str(run.path), tmp_path / "out")


def test_a_folder_is_called_as_the_licence_wants(train, tmp_path, monkeypatch):
    run = train("run", "trainer.max_steps=1", "model.name_prefix=glm-4-", "trainer.precision=32-true")
    monkeypatch.chdir(tmp_path)
    cli.main(["export", str(run.path), "--adapter"])
    assert (tmp_path / "glm-4-run" / "adapter_config.json").is_file()
