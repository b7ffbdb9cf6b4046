"""Several sources: how many rows of each are learned, which, and that it is the same again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm_lightning import templates
from glm_lightning.data.formats.prompt_response import PromptResponse
from glm_lightning.data.gate import Gate
from glm_lightning.data.inputs import Amount
from glm_lightning.data.mixing import repetitions, targets
from glm_lightning.data.module import DataModule
from glm_lightning.data.sources import Splits, load_splits
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError


def rows(name: str, count: int) -> list[dict[str, str]]:
    return [{"prompt": f"{name} {n}", "response": f"answer {n}"} for n in range(count)]


def write(path: Path, values: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return str(path)


@pytest.fixture
def load(tmp_path: Path, glm4_tokenizer: Tokenizer) -> Any:
    template = templates.find("glm4", glm4_tokenizer, "glm")

    def run(train: Any, **changes: Any) -> Splits:
        settings = {"val": None, "test": None, "split": "seeded", "seed": 0, "max_length": 64, "gate": Gate()}
        return load_splits(train=train, cache_dir=tmp_path / "cache", tokenizer=glm4_tokenizer, template=template,
                           **(settings | changes))  # fmt: skip

    return run


def questions(splits: Splits) -> Counter[str]:
    part = splits.train
    return Counter(part.conversation(i).messages[0].content for i in range(len(part)))


def by_source(splits: Splits) -> Counter[str]:
    return Counter(question.split()[0] for question in questions(splits).elements())


def test_sources_without_amounts_are_learned_once_each(load: Any, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", rows(name, count)) for name, count in (("a", 3), ("b", 5))]
    splits = load(files)
    assert set(questions(splits).values()) == {1}
    assert [(share.available, share.rows, share.share) for share in splits.shares["train"]] == [
        (3, 3, 3 / 8), (5, 5, 5 / 8),
    ]  # fmt: skip
    assert any("37.5% " in notice and "a.jsonl (3 of 3 rows)" in notice for notice in splits.notices)


def test_weights_counts_and_repetitions(load: Any, tmp_path: Path) -> None:
    a, b, c = (write(tmp_path / f"{name}.jsonl", rows(name, count)) for name, count in (("a", 4), ("b", 10), ("c", 6)))
    assert by_source(load([{"path": a, "weight": 2}, b])) == {"a": 20, "b": 10}
    assert by_source(load([{"path": a, "weight": 1}, {"path": b, "weight": 1}, {"path": c, "rows": 3}])) == {
        "a": 10, "b": 10, "c": 3,
    }  # fmt: skip
    assert by_source(load([{"path": a, "repeat": 3}, {"path": c, "repeat": 0.5}])) == {"a": 12, "c": 3}
    times = questions(load([{"path": a, "rows": 10}]))
    assert sorted(times.values()) == [2, 2, 3, 3]


def test_which_rows_are_taken_depends_on_seed_and_content_alone(load: Any, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", rows("a", 30)), write(tmp_path / "b.jsonl", rows("b", 9))
    turned = write(tmp_path / "turned.jsonl", rows("a", 30)[::-1])
    chosen = questions(load([{"path": a, "rows": 7}]))
    assert questions(load([{"path": turned, "rows": 7}])) == chosen
    mixed = questions(load([b, {"path": a, "rows": 7}]))
    assert {question for question in mixed if question.startswith("a")} == set(chosen)
    assert questions(load([{"path": a, "rows": 7}], seed=1)) != chosen


def test_validation_rows_are_never_repeated_into_training(load: Any, tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", rows("a", 20))
    splits = load([{"path": a, "repeat": 3}], val=5)
    held = {splits.val.conversation(i).messages[0].content for i in range(5)}
    assert len(splits.val) == 5
    assert len(splits.train) == 45
    assert not held & set(questions(splits))


def test_each_source_has_a_format_and_an_encoding_of_its_own(load: Any, tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", rows("a", 2))
    table = tmp_path / "b.csv"
    table.write_bytes("frage,antwort\nb 1,答案\n".encode("gb18030"))
    other = {"path": str(table), "encoding": "gb18030", "format": PromptResponse(prompt="frage", response="antwort")}
    splits = load(
        [
            plain,
            other,
            {
                "path": write(
                    tmp_path / "c.jsonl",
                    [{"messages": [{"role": "user", "content": "c 1"}, {"role": "assistant", "content": "x"}]}],
                ),
                "format": "messages",
            },
        ]
    )
    assert set(questions(splits)) == {"a 0", "a 1", "b 1", "c 1"}
    assert splits.train.conversation(2).answer() == "答案"
    assert [n for n in splits.notices if "read as" in n] == [
        "train: read as prompt_response, recognised from the first rows; set data.format to fix it"
    ]


def test_how_a_file_is_read_is_part_of_the_fingerprint(load: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row | {"answer": "x", "question": "y"} for row in rows("a", 3)])
    ways = [{"format": "prompt_response"}, {"format": "prompt_response", "encoding": "big5"}]
    ways.append({"format": PromptResponse(prompt="question", response="answer")})
    assert len({load([{"path": path} | way]).train.fingerprint for way in ways}) == 3


def test_a_checkpoint_is_not_resumed_with_another_mixture(tmp_path: Path, glm4_tokenizer: Tokenizer) -> None:
    a, b = write(tmp_path / "a.jsonl", rows("a", 8)), write(tmp_path / "b.jsonl", rows("b", 4))

    def module(*train: Any) -> DataModule:
        made = DataModule(train=list(train), cache_dir=str(tmp_path / "cache"), max_length=64)
        made.load(glm4_tokenizer, templates.find("glm4", glm4_tokenizer, "glm"))
        return made

    first = module({"path": a, "rows": 4}, {"path": b, "rows": 8})
    module({"path": a, "rows": 4}, {"path": b, "rows": 8}).load_state_dict(first.state_dict())
    with pytest.raises(UserError, match=r"data.mixture: the checkpoint was made with \[4, 8\], now it is \[6, 6\]"):
        module({"path": a, "rows": 6}, {"path": b, "rows": 6}).load_state_dict(first.state_dict())


def test_a_checkpoint_is_not_resumed_with_another_split(tmp_path: Path, glm4_tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", rows("a", 20))

    def module(split: Any) -> DataModule:
        made = DataModule(train=str(path), val=4, split=split, cache_dir=str(tmp_path / "cache"), max_length=64)
        made.load(glm4_tokenizer, templates.find("glm4", glm4_tokenizer, "glm"))
        return made

    module("last").load_state_dict(module("last").state_dict())
    with pytest.raises(UserError, match=r"data.split: the checkpoint was made with"):
        module("last").load_state_dict(module("seeded").state_dict())


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ([{"path": "a.jsonl", "wieght": 2}], "data.train[0].wieght: no such key; an entry takes path, format"),
        ([{"weight": 2}], "data.train[0].path is None"),
        (["a.jsonl", {"path": "a.jsonl", "weight": 0}], "data.train[1].weight is 0: must be a number above 0"),
        ([{"path": "a.jsonl", "rows": 1.5}], "data.train[0].rows is 1.5: must be a whole number"),
        ([{"path": "a.jsonl", "rows": 1, "repeat": 2}], "rows and repeat say the same"),
        ([{"path": "a.jsonl", "format": "nope"}], "data.format is 'nope': must be auto or one of alpaca"),
        ([{"path": "a.jsonl", "encoding": "nope"}], "data.train[0].encoding is 'nope': no such encoding"),
        ([{"path": "a.jsonl", "rows": 2}, "*.jsonl"], "a.jsonl is in two entries that say different things"),
        ([], "data.train is an empty list"),
        ({"path": "b.jsonl"}, "data.train: 'b.jsonl' is no file"),
    ],
)
def test_what_is_wrong_with_entries_is_said(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", rows("a", 3))
    with pytest.raises(UserError) as error:
        load(train)
    assert expected in str(error.value)


def test_rows_that_nothing_learns_yet_are_refused_by_name(load: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.jsonl: its rows \(format text\) are .* objective=pretrain"):
        load(write(tmp_path / "a.jsonl", [{"text": "t"}]))


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["weight", "rows", "repeat", ""]), st.integers(1, 9)),
             min_size=1, max_size=4)
)  # fmt: skip
def test_no_weighted_row_is_lost_and_proportions_hold(sources: list[tuple[int, str, int]]) -> None:
    amounts = [Amount(**({name: value} if name else {})) for _, name, value in sources]
    counts = targets([size for size, _, _ in sources], amounts)
    some_weigh = any(amount.weight is not None for amount in amounts)
    weighed = []
    for (size, name, value), count in zip(sources, counts, strict=True):
        if not size:
            assert count == 0
        elif name == "rows":
            assert count == value
        elif name == "repeat":
            assert count == value * size
        elif some_weigh:
            assert count >= size
            weighed.append(count / (value if name else 1))
        else:
            assert count == size
    assert max(weighed, default=0) - min(weighed, default=0) <= 1


@given(size=st.integers(1, 30), count=st.integers(0, 99), seed=st.integers(0, 9))
def test_rows_are_taken_as_often_as_each_other(size: int, count: int, seed: int) -> None:
    contents = np.arange(size, dtype=np.uint64)
    times = repetitions(contents, count=count, seed=seed)
    assert times.sum() == count
    assert times.max() - times.min() <= 1
    order = np.random.default_rng(seed).permutation(size)
    assert (repetitions(contents[order], count=count, seed=seed) == times[order]).all()


def test_copies_are_taken_as_often_as_the_count_says() -> None:
    assert sorted(repetitions(np.zeros(5, np.uint64), count=7, seed=0).tolist()) == [1, 1, 1, 2, 2]


def test_a_file_that_is_named_again_is_read_once_and_told(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", rows("a", 4))
    (tmp_path / "link.jsonl").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for others in ([path], ["a.jsonl"], ["./sub/../a.jsonl"], ["link.jsonl"], ["*.jsonl"]):
        (tmp_path / "sub").mkdir(exist_ok=True)
        splits = load([path, *others])
        assert questions(splits) == questions(load(path))
        assert [share.rows for share in splits.shares["train"]] == [4]
        assert any("named again and read once" in notice and "repeat: 2" in notice for notice in splits.notices)
    with pytest.raises(UserError, match=r"link.jsonl is in two entries that say different things"):
        load([{"path": path, "repeat": 2}, "link.jsonl"])
    assert not any("named again" in notice for notice in load(path).notices)
