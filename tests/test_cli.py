from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import glm_lightning
from glm_lightning import cli
from glm_lightning.config import entry_point

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
HEAVY = {"torch", "lightning", "transformers", "peft"}


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False
    )


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """With the name of every imported module on stderr."""
    return run(sys.executable, "-X", "importtime", *arguments, cwd=cwd)


def imported(process: subprocess.CompletedProcess[str]) -> set[str]:
    lines = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 50
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def shell(arguments: list[str]) -> list[str]:
    return ["-c", f"from glm_lightning.cli import main; raise SystemExit(main({arguments!r}))"]


ENTRY = str(entry_point())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([ENTRY, "--help"], "optimizer.lr=1e-4"),
        ([ENTRY, "method=full", "name=类型#裙", "--cfg", "job"], "name: 类型#裙"),
        (shell(["--help"]), "glm COMMAND --help"),
        (shell(["--version"]), glm_lightning.__version__),
        (shell(["train", "--cfg", "job"]), "_target_: glm_lightning.methods.lora.LoRA"),
    ],
)
def test_help_and_config_import_nothing_heavy_and_write_nothing(
    arguments: list[str], expected: str, tmp_path: Path
) -> None:
    process = python(*arguments, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
    assert expected in process.stdout
    assert not imported(process) & HEAVY
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[ENTRY, "method=lroa", "数"], shell(["train", "method=lroa", "数"])])
def test_mistakes_end_with_2_a_list_and_no_traceback(arguments: list[str], tmp_path: Path) -> None:
    process = run(sys.executable, *arguments, cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.splitlines() == [
        "error: 2 problems",
        "  1. 数: must be key=value, as in name=数",
        "  2. method is 'lroa': must be one of lora, qlora, adalora, ia3, full, prompt_tuning, freeze, ptuning_v2 "
        "(nearest first)",
    ]


def test_refusing_is_quick_too(tmp_path: Path) -> None:
    assert not imported(python(ENTRY, "method=lroa", cwd=tmp_path)) & HEAVY
    assert not imported(python(*shell(["trian"]), cwd=tmp_path)) & HEAVY


def test_help_shows_groups_and_keys_with_their_comments(tmp_path: Path) -> None:
    text = run(sys.executable, ENTRY, "--help", "method=full", "trainer=ddp", cwd=tmp_path).stdout
    assert "method: adalora, freeze, full, ia3, lora" in text
    assert "# method=full" in text
    assert "${run_dir}" in text  # a dollar in a yaml file survives Hydra's template
    conf = entry_point().parent / "conf"
    for option in ("optimizer/adamw", "trainer/default", "trainer/ddp"):
        for line in (conf / f"{option}.yaml").read_text(encoding="utf-8").splitlines():
            assert line.startswith("defaults:") or line in text
    assert "_target_: glm_lightning.sweeps.Report" not in text


def test_inside_a_wheel_the_packages_own_modules_hide_no_others(tmp_path: Path) -> None:
    """There train.py lies beside types.py and tokenizers/, and Python puts its folder first on its path."""
    package = tmp_path / "glm_lightning"
    package.mkdir()
    (package / "conf").symlink_to(ROOT / "conf")
    (package / "train.py").write_bytes((ROOT / "train.py").read_bytes())
    for path in (ROOT / "glm_lightning").iterdir():
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.run(
        [sys.executable, str(package / "train.py"), "--cfg", "job"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "method:" in process.stdout


def test_every_command_can_be_loaded() -> None:
    for name, command in cli.COMMANDS.items():
        assert callable(command.load()), name


def test_an_unknown_command_lists_what_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["caht"])
    assert caught.value.code == 2
    told, names = capsys.readouterr().err.split(" there are ")
    assert told == "error: glm caht: no such command;"
    assert names.startswith("chat, ")
    assert set(names.removesuffix(" (nearest first)\n").split(", ")) == cli.COMMANDS.keys()


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--nonsense"])
    assert caught.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


def test_without_a_command_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in cli.COMMANDS)


def test_train_leaves_a_command_line_that_ranks_can_be_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, __main__, pathlib\n"
        "assert __name__ == '__main__' and __main__.__spec__ is None\n"
        "pathlib.Path(sys.argv[0] + '.seen').write_text(' '.join(sys.argv))\n",
        encoding="utf-8",
    )
    monkeypatch.setattr("glm_lightning.config.entry_point", lambda: script)
    monkeypatch.setattr(sys, "argv", ["glm", "train"])
    assert cli.main(["train", "-m", "a=1"]) == 0
    assert (tmp_path / "train.py.seen").read_text(encoding="utf-8") == f"{script} -m a=1"
