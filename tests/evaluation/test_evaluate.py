"""``glm evaluate``: the figures of a run again, and those of several models side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import glm_lightning
from glm_lightning.evaluation import command
from glm_lightning.runs import RunFolder
from glm_lightning.types import UserError

# peft 0.21 says so of every AdaLoRA adapter that it loads, and uses the keys all the same
pytestmark = pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")

Evaluate = Callable[..., dict[str, Any]]
METHODS = ("lora", "full", "ptuning_v2", "prompt_tuning", "ia3")
ADDS = ("ptuning_v2", "prompt_tuning")
"""Methods whose network is not its base before they are trained."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_glm: Path, rows: Path) -> Callable[..., RunFolder]:
    """Three steps of a method, made once."""
    folder = tmp_path_factory.mktemp("runs")

    def run(method: str, *more: str, name: str | None = None) -> RunFolder:
        made = RunFolder(folder / (name or method))
        if not made.finished:
            glm_lightning.train([
                "model=local", f"model.path={tiny_glm}", "data=messages", f"data.train={rows}", "data.val=8",
                "data.test=7", "data.batch_size=8", f"data.cache_dir={folder / 'cache'}", "trainer.max_epochs=1",
                "trainer.max_steps=3", "trainer.precision=32-true", "trainer.accelerator=cpu", "optimizer.lr=1e-2",
                "evaluation.max_new_tokens=12", "general=null", "logger=none", f"run_dir={made.path}",
                f"method={method}", *more,
            ])  # fmt: skip
        return made

    return run


@pytest.fixture
def evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    def run(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        command.main([*map(str, arguments), "--out", str(tmp_path / "out"), "--json"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "asked.jsonl"
    texts = [("who are you", "yes"), ("裙 材质", "no"), ("the quick brown fox", "yes"), ("a", "no"), ("b", "yes")]
    rows = [{"question": question, "answer": answer} for question, answer in texts * 2]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", METHODS)
def test_the_figures_are_those_of_the_runs_report(
    runs: Callable[..., RunFolder], evaluate: Evaluate, method: str
) -> None:
    """To the last digit, before and after: the same batches, the same arithmetic, the same objective."""
    run = runs(method)
    report = run.read_report()
    of_base, of_run = evaluate(run.path, "--base", "--resamples", 5)["models"]
    for found, expected in ((of_base, report["before"]), (of_run, report["metrics"])):
        scores = {f"test/{name}": score["value"] for name, score in found["scores"].items()}
        figures = scores | {f"val/{name}": value for name, value in found["losses"].items()}
        figures["test/finished"] = 100 * (1 - found["counts"]["not ended"] / found["counts"]["rows"])
        if found is of_run or method not in ADDS:
            assert {name: figures[name] for name in expected} == expected
    assert of_run["losses"]["loss"] != of_base["losses"]["loss"]


def test_texts_have_the_loss_of_their_run_and_no_answers(
    runs: Callable[..., RunFolder], evaluate: Evaluate, tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    words = ["the quick brown fox", "裙 材质 棉", "who are you", "你好"]
    rows = [{"text": " ".join(words[: 1 + i % 4] * (1 + i % 3)) + f" {i}"} for i in range(40)]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = runs("lora", "objective=pretrain", "data=text", f"data.train={texts}", "data.test=null", name="texts")
    (found,) = evaluate(run.path)["models"]
    assert found["losses"]["loss"] == pytest.approx(run.read_report()["metrics"]["val/loss"], rel=1e-6)
    assert not found["scores"]


def test_pairs_ask_nothing(runs: Callable[..., RunFolder], evaluate: Evaluate, tmp_path: Path, asked: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"who {i}", "chosen": "the fox", "rejected": "you"} for i in range(40)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    more = ("objective=preference", "data=preference", f"data.train={pairs}", "data.test=null")
    run = runs("lora", *more, name="pairs")
    with pytest.raises(UserError, match=r"learned from pairs, which ask nothing; .* --data FILE"):
        evaluate(run.path)
    found = evaluate(run.path, "--data", asked)
    assert any("not what objective=preference minimised" in notice for notice in found["notices"])


def test_mixed_precision_comes_out_the_same(runs: Callable[..., RunFolder], evaluate: Evaluate) -> None:
    run = runs("lora", "trainer.precision=bf16-mixed", name="mixed")
    (found,) = evaluate(run.path, "--only", "loss")["models"]
    assert found["precision"] == "bf16-mixed"
    assert found["losses"]["loss"] == run.read_report()["metrics"]["val/loss"]
    (wide,) = evaluate(run.path, "--only", "loss", "--dtype", "float32")["models"]
    assert wide["losses"]["loss"] != found["losses"]["loss"]
    assert wide["losses"]["loss"] == pytest.approx(found["losses"]["loss"], rel=1e-2)


def test_models_side_by_side_on_other_rows(
    runs: Callable[..., RunFolder], evaluate: Evaluate, asked: Path, tiny_glm: Path, tmp_path: Path
) -> None:
    found = evaluate(tiny_glm, runs("lora").path, "--data", asked, "--rows", 9, "--max-new-tokens", 6)
    plain, tuned = found["models"]
    assert (plain["name"], tuned["name"]) == (tiny_glm.name, "lora")
    assert plain["counts"]["rows"] == tuned["counts"]["rows"] == 9
    # the answers are two classes, so F1 comes by itself
    assert {"rouge_l", "bleu", "chrf", "exact_match", "accuracy", "f1_macro", "f1/yes", "f1/no"} <= plain[
        "scores"
    ].keys()
    assert "difference" not in plain["scores"]["rouge_l"]
    low, high = tuned["scores"]["chrf"]["difference"]
    assert low <= tuned["scores"]["chrf"]["value"] - plain["scores"]["chrf"]["value"] <= high
    assert plain["losses"].keys() == {"loss", "perplexity", "token_accuracy"}
    lines = [json.loads(line) for line in Path(tuned["predictions"]).read_text(encoding="utf-8").splitlines()]
    assert [line["origin"] for line in lines] == [f"{asked}:{number}" for number in range(1, 10)]
    assert lines[1]["prompt"] == "裙 材质"
    assert lines[1]["reference"] == "no"
    glm = glm_lightning.load(runs("lora").path)
    assert lines[1]["answer"] == glm.generate([{"role": "user", "content": "裙 材质"}], max_new_tokens=6)
    mean = sum(line["scores"]["rouge_l"] for line in lines) / 9
    assert mean == pytest.approx(tuned["scores"]["rouge_l"]["value"])
    (alone,) = evaluate(tiny_glm, "--data", asked, "--rows", 9, "--max-new-tokens", 6)["models"]
    assert alone == plain


def test_an_interrupted_evaluation_goes_on(
    evaluate: Evaluate, asked: Path, tiny_glm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (tiny_glm, "--data", asked, "--only", "answers", "--max-new-tokens", 6, "--batch-size", 4)
    whole = evaluate(*arguments)
    kept = next(Path(whole["models"][0]["predictions"]).parent.glob("replies/*.jsonl"))
    lines = kept.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4  # what they depend on, and three batches
    kept.write_bytes(b"".join(lines[:2]) + lines[2][:10])  # killed while it wrote the second batch
    batches: list[int] = []
    answer = command.measure_answers.__globals__["answers"].ask.__globals__["answer"]

    def counting(network: Any, prompts: list[list[int]], **options: Any) -> Any:
        batches.append(len(prompts))
        return answer(network, prompts, **options)

    monkeypatch.setattr("glm_lightning.inference.asking.answer", counting)
    again = evaluate(*arguments)
    assert batches == [4, 2]
    assert again == whole
    assert kept.read_bytes() == b"".join(lines)
    evaluate(*arguments, "--metrics", "rouge_chinese")  # other scores of the same answers cost nothing
    assert batches == [4, 2]
    evaluate(*arguments, "--fresh")
    assert batches == [4, 2, 4, 4, 2]


def test_empty_answers_and_shortened_prompts_are_counted(
    evaluate: Evaluate, tiny_glm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Path(shutil.copytree(tiny_glm, tmp_path / "small"))
    config = json.loads((small / "config.json").read_text(encoding="utf-8"))
    (small / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40}), encoding="utf-8")
    rows = tmp_path / "rows.jsonl"
    long = "the quick brown fox jumps over the lazy dog " * 8
    rows.write_text("\n".join(json.dumps({"question": q, "answer": "a"}) for q in ("who", long)), encoding="utf-8")
    monkeypatch.setattr("glm_lightning.templates.glm4.GLM4.parse", silent)
    (found,) = evaluate(small, "--data", rows, "--only", "answers", "--max-new-tokens", 4)["models"]
    assert found["counts"]["shortened"] == 1
    assert found["counts"]["empty"] == 2
    assert found["scores"]["rouge_l"]["value"] == 0
    command.main([str(small), "--data", str(rows), "--only", "answers", "--out", str(tmp_path / "out")])


def silent(template: Any, text: str, **options: Any) -> Any:
    return glm_lightning.types.Message("assistant", "" if text != "a" else text)


def test_the_table_says_what_the_figures_are(
    runs: Callable[..., RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    run = runs("lora")
    command.main([str(run.path), "--base", "--resamples", "50", "--out", str(tmp_path)])
    told = capsys.readouterr().out
    report = run.read_report()
    assert f"{report['metrics']['val/loss']:.4g}" in told
    assert f"{report['before']['val/loss']:.4g}" in told
    assert told.count("are the same to the last digit") == 2
    assert "95% confidence" in told
    assert "answers of lora: " in told


def test_mistakes_are_told_at_once(
    runs: Callable[..., RunFolder], evaluate: Evaluate, tiny_glm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "opened", lambda *_, **__: pytest.fail("a model is loaded"))
    with pytest.raises(UserError, match="--data is missing: only a run has rows of its own"):
        evaluate(tiny_glm)
    with pytest.raises(UserError) as caught:
        evaluate("no/such", "no/other", "--temperature", "-1")
    assert [problem.split()[0] for problem in caught.value.problems] == ["model.path", "model.path", "temperature"]
    other = runs("lora", "data.seed=5", name="other")
    with pytest.raises(UserError, match=r"was measured on other rows than .*data.seed is 5, not 1.*--data FILE"):
        evaluate(runs("lora").path, other.path)
    with pytest.raises(UserError, match="no/rows"):
        evaluate(tiny_glm, "--data", "no/rows")


def test_a_run_of_somebody_else_runs_no_code(
    runs: Callable[..., RunFolder], evaluate: Evaluate, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(runs("lora").path, tmp_path / "copy"))
    text = (copy / "config.yaml").read_text(encoding="utf-8")
    (copy / "config.yaml").write_text(
        text.replace("_target_: glm_lightning.data.module.DataModule", "_target_: os.system"), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"calls os\.system"):
        evaluate(copy)


def test_what_is_not_a_number_is_null_in_json(evaluate: Evaluate, asked: Path, tiny_glm: Path) -> None:
    arguments = (tiny_glm, "--data", asked, "--only", "answers", "--max-new-tokens", 2, "--metrics", "tool_calls")
    (found,) = evaluate(*arguments)["models"]
    assert found["scores"]["tool_calls"] == {"value": None, "interval": [None, None]}
