from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_lightning import templates, tokenizers
from glm_lightning.cli import main
from glm_lightning.data.encoding import Encoder
from glm_lightning.data.plan import Plan
from glm_lightning.inspection.facts import suggestion
from glm_lightning.inspection.languages import language
from glm_lightning.types import Conversation, Message

NUMBERS = [1, 5, 9, 14, 20, 27, 35, 44, 54, 65, 77, 90]


def rows() -> list[dict[str, Any]]:
    """Lengths grow; half Chinese, half English."""
    words = ["the cat sits on the mat", "今天天气很好"]
    return [
        {"prompt": f"{words[i % 2]}? {n}", "response": f"{n} " + (words[i % 2] + " ") * n}
        for i, n in enumerate(NUMBERS)
    ]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLM_LIGHTNING_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "数据 [1].jsonl"
    lines = [*rows(), rows()[0], {"prompt": "q"}, {"prompt": "say <|user|>", "response": "no\ufffd"}]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines), encoding="utf-8")
    return path


def encoded(tiny_glm: Path, max_length: int) -> list[Any]:
    """The sound rows, by a plain loop."""
    tokenizer = tokenizers.load(tiny_glm)
    encoder = Encoder(tokenizer=tokenizer, template=templates.find("glm4", tokenizer, "glm"), max_length=max_length)
    texts = [(row["prompt"], row["response"]) for row in [*rows(), rows()[0]]] + [("say <|user|>", "no\ufffd")]
    pairs = [Conversation((Message("user", q), Message("assistant", a))) for q, a in texts]
    return [each.sample() for pair in pairs for each in encoder.encode([pair])]


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["inspect", *arguments, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_facts_are_those_of_a_plain_loop(path: Path, tiny_glm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", str(tiny_glm), "--max-length", "300", "--batch-size", "4", "--max-tokens", "1024")
    facts = inspected(capsys, str(path), *options)
    train, whole, cut = facts["parts"]["train"], encoded(tiny_glm, 1 << 30), encoded(tiny_glm, 300)
    sizes, kept = [len(each.input_ids) for each in whole], [len(each.input_ids) for each in cut]
    assert (train["rows"], train["bad_rows"], train["samples"]) == (14, 1, 14)
    assert train["tokens"] == sum(kept)
    assert train["learned_share"] == pytest.approx(sum(each.num_supervised for each in cut) / sum(kept), abs=1e-4)
    assert train["lengths"] | {"mean": 0} == {
        "min": min(sizes),
        **{f"p{p}": int(np.quantile(sizes, p / 100, method="higher")) for p in (50, 90, 95, 99)},
        "max": max(sizes),
        "mean": 0,
    }
    assert sum(each["samples"] for each in train["histogram"]) == 14
    for each in train["histogram"]:
        assert each["samples"] == sum(each["from"] <= size <= each["to"] for size in sizes)
    assert train["truncated"]["samples"] == sum(each.truncated for each in cut) == sum(size > 300 for size in sizes) > 0
    assert train["truncated"]["tokens_cut"] == sum(sizes) - sum(kept)
    learned_cut = sum(each.num_supervised for each in whole) - sum(each.num_supervised for each in cut)
    assert train["truncated"]["learned_tokens_cut"] == learned_cut
    assert train["languages"]["zh"] == pytest.approx(6 / 14, abs=1e-4)
    plan = Plan(
        lengths=np.array(kept, np.int32), num_supervised=np.array(kept, np.int32), batch_size=4, max_tokens=1024,
        pad_to_multiple=64, seed=0, accumulate=facts["plan"]["micro_batches_per_step"],
    )  # fmt: skip
    plan.check(plan.needed(1))
    assert facts["plan"]["steps_per_epoch"] == plan.num_steps
    assert 0 <= facts["plan"]["padding_share"] < 1
    assert {each["kind"]: each["count"] for each in facts["faults"]} == {
        "duplicate": 1,
        "control_token": 1,
        "replacement_character": 1,
        "missing": 1,
    }
    assert len(facts["samples"]) == 3
    assert facts["samples"][0]["origin"] == f"{path}:1"


def test_the_padding_share_is_that_of_the_batches(
    path: Path, tiny_glm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = inspected(capsys, str(path), "--model", str(tiny_glm), "--batch-size", "100")["plan"]
    sizes = [len(each.input_ids) for each in encoded(tiny_glm, 1024)]
    assert plan["steps_per_epoch"] == 1
    least = 1 - sum(sizes) / sum(-(-size // 64) * 64 for size in sizes)
    assert least <= plan["padding_share"] < 0.7


def test_the_suggested_length_keeps_nearly_all_samples_whole(
    path: Path, tiny_glm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suggested = inspected(capsys, str(path), "--model", str(tiny_glm), "--max-length", "64")["suggestion"]
    longest = max(len(each.input_ids) for each in encoded(tiny_glm, 1 << 30))
    assert suggested["max_length"] % 64 == 0
    assert longest <= suggested["max_length"] < longest + 64
    assert "at 64 it is" in suggested["reason"]


def test_the_terminal_and_the_page_show_everything(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", str(path), "--val", "3", "--html", str(page)]) == 0
    said = capsys.readouterr().out
    for text in (
        "demo (glm4)",
        "train",
        "val",
        "suggested: max_length=",
        "missing",
        "control_token",
        "<|assistant|>",
        "█",
    ):
        assert text in said
    html = page.read_text(encoding="utf-8")
    for text in (
        "<svg",
        "数据 [1].jsonl:1",
        "Suggested: <b>max_length=",
        '<span class="control">&lt;|user|&gt;</span>',
    ):
        assert text in html
    assert "<script" not in html


def test_no_weights_are_read(path: Path, tiny_glm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "no-weights"
    folder.mkdir()
    for file in tiny_glm.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    assert inspected(capsys, str(path), "--model", str(folder))["parts"]["train"]["rows"] == 14


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("今天天气很好", "zh"),
        ("请把 Hello world 翻译成中文好吗", "zh"),
        ("How are you? 你好", "en"),
        ("what is 3 + 4?", "en"),
        ("12 + 30 = 42", "other"),
        ("", "other"),
        ("こんにちは、お元気ですか", "other"),
        ("Привет, как дела", "other"),
        ("안녕하세요", "other"),
        ("𠀀𠀁㐀", "zh"),
    ],
)
def test_languages_are_told_by_their_script(text: str, expected: str) -> None:
    assert language(text) == expected


def test_a_length_that_is_no_multiple_of_the_padding_fits(
    path: Path, tiny_glm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", str(tiny_glm), "--max-length", "100", "--max-tokens", "1")
    facts = inspected(capsys, str(path), *options)
    assert facts["parts"]["train"]["truncated"]["samples"]
    assert facts["plan"]["max_tokens"] == 128


def test_no_more_is_suggested_than_the_network_was_made_for(path: Path) -> None:
    class Part:
        widths = np.array([100] * 10, np.int32)

        def numbers(self, name: str) -> Any:
            return np.full(10, 900, np.int32)

    part: Any = Part()
    assert suggestion(part, max_length=64, context=None).max_length == 1024
    assert suggestion(part, max_length=64, context=2048).max_length == 1024
    bounded = suggestion(part, max_length=64, context=512)
    assert bounded.max_length == 512
    assert "more than the 512 positions of the network" in bounded.reason
    assert "0.0% of the samples stay whole" in bounded.reason


def test_how_the_files_were_read_is_told(path: Path, tiny_glm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path.parent / "b.xlsx").write_bytes(b"PK")
    notices = inspected(capsys, str(path.parent), str(path), "--model", str(tiny_glm))["notices"]
    assert any("b.xlsx" in notice and "not read" in notice for notice in notices)
    assert any("named again" in notice for notice in notices)
