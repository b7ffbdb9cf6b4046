"""The README's commands are real, and both languages have the same ones."""

import re
import shlex

import pytest
from tiny_runs import ROOT

from glm_lightning import cli, config
from glm_lightning.training.run import PROVIDED, with_autos_set

ENGLISH, CHINESE = (ROOT / name for name in ("README.md", "README_zh.md"))


def commands(path):
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def files(path):
    return re.findall(r"\]\(([^):#]+)\)", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", [commands, files])
def test_both_languages_have_the_same(kind):
    others = {"README.md", "README_zh.md"}
    assert [x for x in kind(ENGLISH) if x not in others] == [x for x in kind(CHINESE) if x not in others]


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_every_linked_file_is_there(path):
    assert [file for file in files(path) if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("line", [part for line in commands(ENGLISH) for part in line.split(" && ")])
def test_every_command_is_one(line):
    program, *arguments = shlex.split(line)
    if [program, *arguments[:1]] == ["python", "train.py"]:
        overrides = config.arguments(arguments[1:])
        if not {"-m", "--multirun"} & set(overrides):
            composed = config.compose([*overrides, "run_dir=somewhere"])
            config.check(with_autos_set(composed), provided=PROVIDED)
    elif program == "glm":
        assert arguments[0] in cli.COMMANDS
    elif program == "python":
        assert (ROOT / arguments[0]).is_file() or arguments[0] == "-m"
    else:
        assert program in {"pip", "pytest", "tensorboard", "curl"}


def test_the_groups_and_options_listed_are_those_of_conf():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", ENGLISH.read_text(encoding="utf-8"), flags=re.MULTILINE)
    listed = {group: set(re.findall(r"`(\w+)`", options)) for group, options in rows}
    folders = [folder for folder in (ROOT / "conf").iterdir() if folder.is_dir()]
    real = {folder.name: {file.stem for file in folder.glob("*.yaml")} - {"default"} for folder in folders}
    assert {group: options - {"default"} for group, options in listed.items()} == real
