from __future__ import annotations

import os
from pathlib import Path

import pytest
from miniature import CONFIG, ROOT, TRAINING

from glm_lightning.sweeps import pool


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The entry point and the package as they are, but for the training and conf/."""
    folder = tmp_path / "checkout"
    package = folder / "glm_lightning"
    package.mkdir(parents=True)
    for path in (ROOT / "glm_lightning").iterdir():
        if path.name not in ("__pycache__", "training", "training.py", "conf", "train.py"):
            (package / path.name).symlink_to(path)
    (package / "training.py").write_text(TRAINING, encoding="utf-8")
    (folder / "train.py").write_bytes((ROOT / "train.py").read_bytes())
    own = (ROOT / "conf" / "train.yaml").read_text(encoding="utf-8").partition("\nsweep:")[2]
    (folder / "conf" / "sweep").mkdir(parents=True)
    (folder / "conf" / "train.yaml").write_text(f"{CONFIG}\nsweep:{own}", encoding="utf-8")
    (folder / "conf" / "sweep" / "rates.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      lr: 3,1,2\n", encoding="utf-8"
    )
    (folder / "conf" / "launcher").symlink_to(ROOT / "conf" / "launcher")
    optuna = (ROOT / "conf" / "sweep" / "optuna.yaml").read_text(encoding="utf-8").partition("  space:")[0]
    (folder / "conf" / "sweep" / "optuna.yaml").write_text(
        f"{optuna}  space: {{lr: {{low: 0.01, high: 1.0, log: true}}}}\n", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONUTF8", "1")
    monkeypatch.setattr(pool, "entry_point", lambda: folder / "train.py")
    monkeypatch.chdir(tmp_path)
    return folder
