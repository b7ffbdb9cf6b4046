"""An export that is killed leaves nothing under its folder's name, and the next one sweeps up behind it."""

import subprocess
import sys

import pytest

from glm_lightning.export import export_adapter, export_model, folders
from glm_lightning.types import UserError

DIES = """
import os, signal, sys
from pathlib import Path
from glm_lightning.export import description, export_model
from glm_lightning.export.merging import Merging
stage, source, out = sys.argv[1:]
owner = Merging if stage == "write" else description
original = getattr(owner, stage)
def dies(*args, **kwargs):
    original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, stage, dies)
export_model(source, Path(out))
"""


@pytest.mark.parametrize("stage", ["write", "write_words", "write_card"])
def test_a_killed_export_leaves_no_half_of_it(train, tmp_path, stage):
    run = train("run", "trainer.max_steps=1")
    out = tmp_path / "exports" / "out"
    killed = subprocess.run([sys.executable, "-c", DIES, stage, str(run.path), str(out)], check=False)
    assert killed.returncode == -9
    assert not out.exists()
    assert len(list(out.parent.iterdir())) == 1, "what was written until then lies under another name"
    export_model(str(run.path), out)
    assert list(out.parent.iterdir()) == [out]


def test_of_two_exports_at_once_the_second_is_told(train, tmp_path, monkeypatch):
    run = train("run", "trainer.max_steps=1")
    out = tmp_path / "out"
    words = folders.words

    def meanwhile(*args):
        out.mkdir()
        return words(*args)

    monkeypatch.setattr(folders, "words", meanwhile)
    with pytest.raises(UserError, match="has come to exist meanwhile"):
        export_adapter(str(run.path), out)
    assert list(out.iterdir()) == []
