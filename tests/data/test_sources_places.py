"""Places that yaml names: files, folders, globs, saved data sets, names on hubs."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from glm_lightning.data.finding import find, passed_over
from glm_lightning.data.hub import HubName
from glm_lightning.data.inputs import Inputs, sources_of
from glm_lightning.data.reading import Problems
from glm_lightning.data.sources import find as find_sources
from glm_lightning.types import UserError

ROWS = [{"prompt": f"q {i}", "response": "a"} for i in range(5)]


def test_files_folders_and_globs_are_found(tmp_path: Path) -> None:
    names = ("b.jsonl", "a.json", "note.md", "README.txt", "sub/c.ndjson.gz", ".hidden/d.jsonl", "sub/.e.csv", "x.csv")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    every = [tmp_path / name for name in ("a.json", "b.jsonl", "sub/c.ndjson.gz", "x.csv")]
    assert find(tmp_path, key="data.train") == every
    assert find(str(tmp_path / "*.json*"), key="data.train") == every[:2]
    assert find(tmp_path / "note.md", key="data.train") == [tmp_path / "note.md"]
    assert passed_over(tmp_path) == [tmp_path / "README.txt", tmp_path / "note.md"]
    assert passed_over(tmp_path / "note.md") == passed_over(str(tmp_path / "*.json*")) == []


def test_a_folder_of_nothing_but_text_is_text(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt.zst"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert find(tmp_path, key="data.train") == [tmp_path / "a.txt", tmp_path / "b.txt.zst"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"prompt": "q", "response": "a"}', encoding="utf-8")
    inputs = Inputs.of(sources_of([str(tmp_path / "b.jsonl"), str(tmp_path)], key="data.train"))
    assert inputs.paths == [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]


def test_everything_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    parts: dict[str, Any] = {"train": str(tmp_path / "no.json"), "val": str(tmp_path / "*.jsonl"), "test": 3}
    with pytest.raises(UserError) as error:
        find_sources(parts)
    assert [problem.partition(":")[0] for problem in error.value.problems] == ["data.train", "data.val"]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("hf:o/n", ("hf", "o/n", None, None, "train")),
        ("hf:o/n/main@abc:test", ("hf", "o/n", "main", "abc", "test")),
        ("ms:o/n.x:validation", ("ms", "o/n.x", None, None, "validation")),
        ("hf:./folder:train", ("hf", "./folder", None, None, "train")),
    ],
)
def test_names_on_hubs(entry: str, expected: tuple[str | None, ...]) -> None:
    name = HubName.of(entry, key="data.train")
    assert name is not None
    assert (name.hub, name.name, name.subset, name.revision, name.split) == expected
    assert str(HubName.of(str(name), key="k")) == str(name)


def test_what_is_no_name_is_told() -> None:
    assert HubName.of("folder/file.jsonl", key="data.train") is None
    for entry in ("hf:", "hf:name", "hf:o/n:a:b", "ms:o/n:train[:10]"):
        with pytest.raises(UserError, match=r"must be hf:owner/name:train"):
            HubName.of(entry, key="data.train")


@pytest.mark.parametrize(("hub", "package"), [("hf", "datasets"), ("ms", "modelscope")])
def test_a_library_that_is_missing_is_named_before_anything_is_read(
    hub: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(UserError, match=f"pip install {package}"):
        find_sources({"train": f"{hub}:o/n"})


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with a cache of its own and without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    library.disable_progress_bars()
    return library


def values(entry: str) -> list[Any]:
    problems = Problems()
    inputs = Inputs.of(sources_of(entry, key="data.train"))
    found = [row.value for path in inputs.paths for row in inputs.read(path, problems)]
    assert problems.texts == []
    return found


def test_data_sets_that_the_library_has_saved(datasets: Any, tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one", num_shards=2)
    assert values(str(tmp_path / "one")) == ROWS
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "many")
    assert values(str(tmp_path / "many/test")) == ROWS[:1]
    with pytest.raises(UserError, match=r"holds the splits test, train; name one: .*many/test"):
        find(str(tmp_path / "many"), key="data.train")


def _local(folder: Path) -> Path:
    folder.mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:2])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_data_sets_through_the_library(datasets: Any, tmp_path: Path) -> None:
    folder = _local(tmp_path / "data")
    assert values(f"hf:{folder}") == ROWS
    assert values(f"hf:{folder}:test") == ROWS[:2]
    with pytest.raises(UserError, match=r"nope: cannot be had \(ValueError: Unknown split"):
        values(f"hf:{folder}:nope")


def test_modelscope_gives_a_folder_to_the_library(
    datasets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _local(tmp_path / "data")
    asked: list[Any] = []
    stub = types.ModuleType("modelscope")
    stub.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    stub.dataset_snapshot_download = lambda name, revision: asked.append((name, revision)) or str(folder)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", stub)
    assert values("ms:o/n@v1:test") == ROWS[:2]
    assert asked == [("o/n", "v1")]


def test_without_a_network_a_hub_says_so(datasets: Any) -> None:
    with pytest.raises(
        UserError, match=r"data.train is hf:o/n:train: cannot be had .*check name, subset, split and net"
    ):
        values("hf:o/n")
