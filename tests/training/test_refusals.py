"""What users get wrong is told by name, all of it at once, and before a weight is read."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from tiny_runs import ROOT

import glm_lightning
from glm_lightning.models import Source
from glm_lightning.types import UserError


@pytest.fixture
def no_load(monkeypatch):
    """Fail if the network is loaded."""

    def load(self, **options):
        raise AssertionError("the network was loaded before the mistake was told")

    monkeypatch.setattr(Source, "load", load)


@pytest.fixture
def refused(overrides, no_load):
    """The problems that a run with these overrides ends with, before its network is loaded."""

    def run(*more):
        with pytest.raises(UserError) as caught:
            glm_lightning.train(overrides("refused", *more))
        return caught.value.problems

    return run


@pytest.fixture
def copy_of_glm(tiny_glm, tmp_path):
    """A model folder to be spoilt."""
    folder = tmp_path / "spoilt"
    shutil.copytree(tiny_glm, folder)
    return folder


@pytest.fixture
def write_rows(tmp_path):
    """Write a data file, an object a line."""

    def write(*rows):
        path = tmp_path / "own.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def row(answer="a short answer", **answer_keys):
    return {
        "messages": [{"role": "user", "content": "who?"}, {"role": "assistant", "content": answer, **answer_keys}],
    }


def edit_json(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


# -- keys and values


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lrr=1e-4", ["optimizer.lrr", "nearest: optimizer.lr"]),
        ("method.rnak=4", ["method.rnak", "rank"]),
        ("metod=lora", ["metod", "method"]),
        ("method=lroa", ["lroa", "lora"]),
        ("trainer.max_epochs=viele", ["trainer.max_epochs is 'viele'", "a whole number"]),
        ("optimizer.lr=[1]", ["optimizer.lr is [1]", "a number"]),
        ("evaluation.metrics=[rouje]", ["rouje", "rouge"]),
        pytest.param("method.rank=0", ["method.rank is 0", "1 or more"]),
        pytest.param("callbacks.checkpoints.every_n_steps=0", ["every_n_steps is 0", "1 or more"]),
        pytest.param("evaluation.rows=abc", ["evaluation.rows", "abc"]),
        ("data.max_tokens=128", ["data.max_tokens is 128", "data.max_length=256"]),
        ("trainer.precision=12-true", ["trainer.precision", "12-true"]),
        ("seed=viele", ["seed", "viele", "a whole number"]),
    ],
)
def test_key_value_and_rule(refused, override, parts):
    problems = refused(override)
    assert len(problems) == 1
    assert all(part in problems[0] for part in parts), problems[0]


def test_all_mistakes_of_the_names_at_once(refused):
    problems = refused("optimizer.lrr=1", "metod=lora", "data=mesages")
    assert len(problems) == 3


def test_all_mistakes_of_the_values_at_once(refused):
    problems = refused("trainer.max_epochs=viele", "optimizer.lr=[1]", "method.targets=3")
    assert len(problems) == 3


def test_all_mistakes_of_the_parts_at_once(refused):
    problems = refused("data.max_tokens=8", "method.rank=0", "evaluation.metrics=[rouje]", "model.path=/nowhere")
    assert len(problems) == 4


# -- data


def test_missing_data_file(refused):
    (problem,) = refused("data.train=/nowhere/rows.jsonl")
    assert problem.startswith("data.train: '/nowhere/rows.jsonl' is no file")


def test_empty_data_file(refused, write_rows):
    path = write_rows()
    (problem,) = refused(f"data.train={path}")
    assert str(path) in problem


def test_no_supervised_token(refused, write_rows):
    path = write_rows(*(row(f"answer {i}", loss=False) for i in range(16)))
    *problems, summary = refused(f"data.train={path}")
    assert summary.startswith(f"{path}: 16 of 16 rows are bad")
    assert [problem.partition(": ")[0] for problem in problems] == [f"{path}:{line}" for line in range(1, 17)]
    assert all("no answer is to be learned" in problem for problem in problems)


def test_unknown_role_is_named_with_its_line(refused, write_rows):
    path = write_rows(row(), {"messages": [{"role": "wizard", "content": "hello"}]}, row())
    (problem,) = [problem for problem in refused(f"data.train={path}") if "wizard" in problem]
    assert problem.startswith(f"{path}:2: ")
    assert "assistant" in problem


def test_too_few_micro_batches_name_the_number(refused):
    options = ("data.max_tokens=256", "data.pad_to_multiple=1")
    (problem,) = refused("trainer.accumulate_grad_batches=1", *options)
    assert problem.startswith("trainer.accumulate_grad_batches is 1")
    needed = int(re.search(r"set it to (\d+)", problem)[1])
    assert needed > 1
    (problem,) = refused(f"trainer.accumulate_grad_batches={needed - 1}", *options)
    assert f"set it to {needed} " in problem


def test_the_named_number_of_micro_batches_is_enough(overrides, refused, monkeypatch):
    options = ("data.max_tokens=256", "data.pad_to_multiple=1")
    (problem,) = refused("trainer.accumulate_grad_batches=1", *options)
    needed = re.search(r"set it to (\d+)", problem)[1]
    with pytest.raises(AssertionError, match="the network was loaded"):
        glm_lightning.train(overrides("enough", f"trainer.accumulate_grad_batches={needed}", *options))


# -- the model


def test_a_target_that_matches_nothing(refused):
    (problem,) = refused("method.targets=[q_proj,query_key_value]")
    assert "'query_key_value'" in problem
    assert "q_proj" in problem.partition("there are")[2]


def test_a_folder_that_asks_for_remote_code(refused, copy_of_glm):
    edit_json(
        copy_of_glm / "config.json",
        model_type="novel",
        auto_map={"AutoConfig": "configuration_novel.NovelConfig"},
    )
    (copy_of_glm / "configuration_novel.py").write_text("raise SystemExit('foreign code ran')\n", encoding="utf-8")
    (problem,) = refused(f"model.path={copy_of_glm}")
    assert "never run" in problem
    assert "novel" in problem
    assert "transformers' own layout" in problem


def test_a_folder_without_config(refused, copy_of_glm):
    (copy_of_glm / "config.json").unlink()
    (problem,) = refused(f"model.path={copy_of_glm}")
    assert "has no config.json" in problem


def test_no_such_folder(refused):
    (problem,) = refused("model.path=/nowhere/glm")
    assert problem == "model.path is '/nowhere/glm': there is no such folder"


def test_a_network_that_does_not_write_text(refused, copy_of_glm):
    (copy_of_glm / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")
    (problem,) = refused(f"model.path={copy_of_glm}")
    assert "'vit' is no causal language model" in problem


def test_a_folder_without_weights(refused, copy_of_glm):
    (copy_of_glm / "model.safetensors").unlink()
    (problem,) = refused(f"model.path={copy_of_glm}")
    assert "weights" in problem


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"model_type": "glm",\n"hidden', "config.json:2: not valid JSON"),
        ("[]", "config.json: names no model_type"),
        ("{}", "config.json: names no model_type"),
        ('{"model_type": "novel"}', "no native class for model type 'novel'"),
        ('{"model_type": "chatglm"}', "neither the keys of ChatGLM-6B"),
        ('{"model_type": "glm", "num_hidden_layers": "two"}', "config.json does not fit model type 'glm'"),
    ],
)
def test_a_config_that_is_none(refused, copy_of_glm, text, part):
    (copy_of_glm / "config.json").write_text(text, encoding="utf-8")
    (problem,) = refused(f"model.path={copy_of_glm}")
    assert part in problem
    assert str(copy_of_glm) in problem


def test_a_folder_without_tokenizer(refused, copy_of_glm):
    for file in copy_of_glm.glob("tokenizer*"):
        file.unlink()
    (problem,) = refused(f"model.path={copy_of_glm}")
    assert "tokenizer" in problem


def test_a_tokenizer_of_another_network(refused, copy_of_glm):
    edit_json(copy_of_glm / "config.json", vocab_size=100)
    (problem,) = refused(f"model.path={copy_of_glm}")
    assert re.search(r"the tokenizer has \d+ ids, the embedding 100 rows", problem)


# -- run folders


def test_a_folder_that_holds_a_run(refused, tmp_path):
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 1\n", encoding="utf-8")
    (problem,) = refused(f"run_dir={folder}")
    assert problem == f"run_dir is {str(folder)!r}: a run lies there already; give resume={folder}"
    assert [file.name for file in folder.iterdir()] == ["config.yaml"]


def test_resuming_a_folder_that_is_no_run(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    (problem,) = refused(f"resume={tmp_path / 'empty'}")
    assert "no run lies there" in problem


@pytest.mark.parametrize("file", ["trained.safetensors", "optimizer.safetensors", "state.json"])
def test_a_torn_checkpoint(train, file):
    run = train("torn", "trainer.max_steps=-1", "trainer.max_epochs=1")
    shutil.rmtree(run.best)  # else the run goes on from it
    torn = run.last / file
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    with pytest.raises(UserError) as caught:
        glm_lightning.train([f"resume={run.path}", "trainer.max_epochs=2"])
    (problem,) = caught.value.problems
    assert problem.startswith(f"{run.last}: not a whole checkpoint")


# -- the run itself


def test_a_step_that_diverges_is_named(train, monkeypatch):
    from glm_lightning.methods.base import Method

    original = Method.training_step

    def diverging(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        return loss * torch.nan if self.trainer.global_step == 2 else loss

    monkeypatch.setattr(Method, "training_step", diverging)
    with pytest.raises(UserError, match=r"^step 3: the gradient norm is nan: no micro-batch gives it again alone"):
        train("diverging")


# -- the command line


@pytest.mark.parametrize(
    ("more", "messages"),
    [
        (["optimizer.lrr=1"], ["error: optimizer.lrr"]),
        (["trainer.max_epochs=viele", "optimizer.lr=[1]"], ["error: 2 problems", "  1. ", "  2. "]),
        (["data.train=/nowhere/数据.jsonl"], ["error: data.train: '/nowhere/数据.jsonl' is no file"]),
        (["optimizer.lr=1e30", "trainer.precision=32-true"], ["error: 2 problems", "the gradient norm is nan"]),
    ],
)
def test_exit_code_two_and_no_traceback(overrides, tmp_path, more, messages):
    command = [sys.executable, str(ROOT / "train.py"), *overrides("refused", *more)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=False)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    assert all(message in done.stderr for message in messages), done.stderr


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("optimizer.lr=-1", "optimizer.lr is -1"),
        ("optimizer.betas=[1,2]", "optimizer.betas is"),
        ("scheduler.warmup=-3", "scheduler.warmup is -3"),
        ("trainer.max_epochs=0", "trainer.max_epochs is 0"),
        ("trainer.max_steps=0", "trainer.max_steps is 0"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val is -1"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps is 0"),
        ("trainer.val_check_interval=2.5", "trainer.val_check_interval is 2.5"),
        ("trainer.precision=16-mixed", "trainer.precision is 16-mixed"),
        ("callbacks.early_stopping.monitor=val/los", "callbacks.early_stopping.monitor is 'val/los'"),
        ("callbacks.early_stopping.mode=mni", "callbacks.early_stopping"),
        ("data.num_workers=-1", "data.num_workers is -1"),
        ("data.train=[]", "data.train is an empty list"),
        ("seed=-1", "seed is -1"),
        ("trainer.strategy=ddpp", "trainer.strategy is ddpp: must be one of auto, ddp, fsdp"),
        ("run_dir=/proc/nowhere/run", "run_dir is '/proc/nowhere/run'"),
    ],
)
def test_values_outside_their_range(refused, override, start):
    (problem,) = refused(override)
    assert problem.startswith(start)


def test_all_values_outside_their_range_at_once(refused):
    assert len(refused("optimizer.lr=-1", "scheduler.warmup=-3", "trainer.max_epochs=0", "method.rank=0")) == 4


@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "qlora"])
def test_a_quantised_base_is_not_sharded(refused, method):
    (problem,) = refused(
        f"method={method}", "quantize=int8", "trainer.strategy=fsdp", "trainer.devices=2", "optimizer=adamw"
    )
    assert "trainer.strategy is fsdp" in problem
    assert "trainer=ddp" in problem
