"""Runs in two processes over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from tiny_runs import ROOT

from glm_lightning.runs import RunFolder


@pytest.fixture
def in_two_processes(overrides: Callable[..., list[str]], tmp_path: Path) -> Callable[..., dict[str, RunFolder]]:
    """Run configurations, given by name, one after the other in one pair of processes."""

    def run(runs: Mapping[str, Sequence[str]]) -> dict[str, RunFolder]:
        commands = [
            knobs if any(knob.startswith("resume=") for knob in knobs) else overrides(name, *knobs)
            for name, knobs in runs.items()
        ]
        file = tmp_path / "commands.json"
        file.write_text(json.dumps(commands), encoding="utf-8")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        script = str(ROOT / "tests" / "strategies" / "watched.py")
        done = subprocess.run(
            [*launch, script, str(file)], capture_output=True, text=True, env=os.environ, timeout=280, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return {name: RunFolder(tmp_path / name) for name in runs}

    return run
