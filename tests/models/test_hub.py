"""ModelScope, with its package played by a module of the same face."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glm_lightning.models import Source
from glm_lightning.types import UserError


class Calls(list[dict[str, Any]]):
    """What was asked of the hub, which holds the model in ``folder``."""

    folder: Path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_glm: Path) -> Calls:
    """The hub, which holds one model."""
    asked = Calls()
    asked.folder = tiny_glm

    def snapshot_download(model_id: str, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        asked.append({"model": model_id, "revision": revision, "patterns": allow_patterns})
        if model_id != "ZhipuAI/tiny":
            raise ValueError("404: not there")
        folder = tmp_path / "snapshot"
        folder.mkdir(exist_ok=True)
        for pattern in allow_patterns or ["*"]:
            for file in asked.folder.glob(pattern):
                shutil.copy(file, folder)
        return str(folder)

    module = ModuleType("modelscope")
    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", module)
    return asked


def test_weights_are_fetched_only_when_they_are_loaded(calls: Calls) -> None:
    source = Source(path="ZhipuAI/tiny", hub="modelscope", revision="v1")
    source.check()
    assert source.config.model_type == "glm"
    assert [call["revision"] for call in calls] == ["v1"]
    assert "*.safetensors" not in calls[0]["patterns"]
    assert sum(p.numel() for p in source.load().parameters()) == source.num_parameters
    assert "*.safetensors" in calls[1]["patterns"]
    assert not any("*.py" in call["patterns"] for call in calls)


def test_of_two_forms_of_the_weights_one_is_fetched(calls: Calls, tmp_path: Path, tiny_glm: Path) -> None:
    Source(path="ZhipuAI/tiny", hub="modelscope").load()
    assert not any("*.bin" in pattern for call in calls for pattern in call["patterns"])
    (tmp_path / "snapshot/model.safetensors").unlink()
    only_bin = Path(shutil.copytree(tiny_glm, tmp_path / "only-bin", ignore=shutil.ignore_patterns("*.safetensors")))
    torch.save(load_file(tiny_glm / "model.safetensors"), only_bin / "pytorch_model.bin")
    (only_bin / "training_args.bin").write_bytes(b"whatever")
    calls.folder = only_bin
    Source(path="ZhipuAI/tiny", hub="modelscope").load()
    assert {file.name for file in (tmp_path / "snapshot").glob("*.bin")} == {"pytorch_model.bin"}


def test_a_folder_needs_no_hub(calls: Calls, tiny_glm: Path) -> None:
    Source(path=str(tiny_glm), hub="modelscope").load()
    assert calls == []


def test_what_the_hub_has_not_is_told(calls: Calls) -> None:
    with pytest.raises(UserError, match="'ZhipuAI/none': ModelScope does not give it: 404"):
        Source(path="ZhipuAI/none", hub="modelscope").check()


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(UserError, match="pip install modelscope"):
        Source(path="ZhipuAI/tiny", hub="modelscope").check()


def test_the_same_name_on_two_hubs_is_two_models(calls: Calls) -> None:
    first = Source(path="ZhipuAI/tiny", hub="modelscope").fingerprint
    assert first == Source(path="ZhipuAI/tiny", hub="modelscope").fingerprint
    assert first != Source(path="ZhipuAI/tiny", hub="modelscope", revision="v1").fingerprint
