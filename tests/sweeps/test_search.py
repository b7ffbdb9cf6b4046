from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from miniature import job, recorded, start, sweep, wait_for

from glm_lightning.sweeps.page import importances, page
from glm_lightning.sweeps.search import Search, validations
from glm_lightning.types import UserError


def test_a_search_finds_and_gives_up_and_goes_on(checkout: Path) -> None:
    words = ["sweep=optuna", "sweep.startup=2", "behaviour=validates"]
    process = start(checkout, *words, "sweep.trials=8")
    wait_for("01*/metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert [(job.number, job.status) for job in recorded()] == [(0, "done"), (1, "stopped")]
    (folder,) = Path("outputs/sweeps").iterdir()
    code, printed, jobs = sweep(checkout, *words, "sweep.trials=8", f"hydra.sweep.dir={folder}")
    assert code == 0, printed
    assert sorted(job.number for job in jobs) == list(range(8))
    assert {job.status for job in jobs} == {"done", "pruned"}
    by_number = {job.number: job for job in jobs}
    assert Path(by_number[1].path, "attempts").read_text() == "begins\ngoes on\n"
    pruned = [job for job in jobs if job.status == "pruned"]
    assert all("above the median" in job.reason for job in pruned)
    rates = {job.number: float(job.overrides[0].partition("=")[2]) for job in jobs}
    assert len(set(rates.values())) == 8
    # what was given up is worse than what was not
    assert min(rates[job.number] for job in pruned) > rates[jobs[0].number]
    assert jobs[0].metrics["val/loss"] == pytest.approx(rates[jobs[0].number])
    assert (folder / "study.db").is_file()


def test_trials_that_fail_do_not_end_a_search(checkout: Path) -> None:
    code, printed, jobs = sweep(
        checkout, "sweep=optuna", "~sweep.space.lr", "+sweep.space.behaviour=[fails,fine]", "sweep.trials=5"
    )
    assert code == 0, printed
    assert len(jobs) == 5
    assert {job.status for job in jobs} == {"done", "failed"}


def test_a_search_with_m_is_refused(checkout: Path) -> None:
    process = start(checkout, "-m", "sweep=optuna", "lr=1,2")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "leave -m out" in printed


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        ({}, "is empty"),
        ({"a": []}, r"sweep.space.a is \[\]: must name at least one value"),
        ({"a": 3}, "must be a list of choices, or a range"),
        ({"a": {"low": 1, "high": 2, "logg": True}}, "and no logg"),
        ({"a": {"low": 1}}, "low and high must be numbers"),
        ({"a": {"b": {"low": 2, "high": 1}}}, "sweep.space.a.b .* low must be below high"),
        ({"a": {"low": 0, "high": 1, "log": True}}, "must be above 0"),
    ],
)
def test_a_space_that_is_none_is_refused(space: dict[str, object], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        Search(space=space)


def test_nested_and_dotted_keys_are_one() -> None:
    search = Search(space={"optimizer": {"lr": {"low": 1, "high": 2}}, "method.rank": [4, 8]})
    assert search.space == {"optimizer.lr": {"low": 1, "high": 2}, "method.rank": [4, 8]}


def test_only_whole_lines_of_validations_are_read(tmp_path: Path) -> None:
    rows = [{"step": 1, "train/loss": 3.0}, {"step": 2, "val/loss": 2.0}, {"step": 3, "val/loss": float("nan")}]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "val/lo'
    assert list(validations(tmp_path)) == []
    (tmp_path / "metrics.jsonl").write_text(text)
    assert list(validations(tmp_path)) == [(2, 2.0)]


def test_importance_is_the_share_of_the_spread() -> None:
    jobs = [job(n, "done", loss, f"a={a}", f"b={b}") for n, (a, b, loss) in enumerate(
        [("x", 1, 1.0), ("x", 2, 1.2), ("y", 1, 3.0), ("y", 2, 3.2)]
    )]  # fmt: skip
    # by hand: mean 2.1, variance 1.01; between x and y 1.0, between 1 and 2 0.01
    assert importances(jobs) == pytest.approx({"a": 1.0 / 1.01, "b": 0.01 / 1.01})
    drawn = [job(n, "done", float(n**3), f"lr={10.0**n}") for n in range(5)]
    assert importances(drawn) == pytest.approx({"lr": 1.0})


def test_the_page_holds_every_job_and_no_markup_of_theirs() -> None:
    jobs = [job(1, "done", 1.0, "name=<b>"), job(2, "done", 2.0, "name=裙"), job(3, "failed", None, "name=x")]
    text = page(jobs, ["val/loss"])
    assert "<b>" not in text.partition("<h1>")[2]
    assert text.count("<path") == 2
    assert "裙" in text
    assert "2 done, 1 failed" in text
