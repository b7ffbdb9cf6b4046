"""Which files of a folder are weights, and what lies in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glm_lightning.models import Source
from glm_lightning.types import UserError


@pytest.fixture
def folder(tiny_glm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_glm, tmp_path / "model"))


def sharded(folder: Path) -> list[str]:
    """Cut the weights in two files with an index; their names."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for file, part in zip(files, (names[:5], names[5:]), strict=True):
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    where = {name: files[place >= 5] for place, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8"
    )
    return files


@pytest.mark.parametrize(
    "name", ["training_args.bin", "optimizer.bin", "adapter_model.safetensors", "pytorch_model.bin"]
)
def test_what_is_not_read_is_no_part_of_the_fingerprint(folder: Path, name: str) -> None:
    before = Source(path=str(folder)).fingerprint
    (folder / name).write_bytes(b"whatever")
    assert Source(path=str(folder)).fingerprint == before
    Source(path=str(folder)).load()
    (folder / "model.safetensors").rename(folder / "elsewhere")
    (folder / name).unlink()
    (folder / "training_args.bin").write_bytes(b"whatever")
    with pytest.raises(UserError, match="holds no weights"):
        Source(path=str(folder)).check()


def test_a_change_in_any_shard_is_another_network(folder: Path) -> None:
    files = sharded(folder)
    seen = {Source(path=str(folder)).fingerprint}
    for file in files:
        tensors = load_file(folder / file)
        next(iter(tensors.values())).add_(1)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        seen.add(Source(path=str(folder)).fingerprint)
    assert len(seen) == 3
    Source(path=str(folder)).load()


def test_missing_shards_and_a_torn_index_are_named(folder: Path) -> None:
    files = sharded(folder)
    (folder / files[1]).unlink()
    with pytest.raises(UserError, match=rf"1 of 2 files of weights are missing: {files[1]}; download"):
        Source(path=str(folder)).check()
    (folder / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="is no index of weights"):
        Source(path=str(folder)).check()


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda c: c.update(num_hidden_layers=1), r"hold \d+ weights that the network .* lacks: model\.layers\.1\."),
        (lambda c: c.update(num_hidden_layers=3), r"lack \d+ weights of the network: model\.layers\.2\."),
    ],
)  # fmt: skip
def test_the_config_of_another_network_is_refused(
    folder: Path, change: Callable[[dict[str, object]], None], pattern: str
) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(config)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=pattern):
        Source(path=str(folder)).load()


def test_weights_of_another_head_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors") | {"v_head.weight": torch.zeros(1, 64)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks: v_head\.weight"):
        Source(path=str(folder)).load()
