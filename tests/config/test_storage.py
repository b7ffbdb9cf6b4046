from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from glm_lightning.config import exit_on_user_error, load, save
from glm_lightning.types import UserError


def test_what_is_saved_is_resolved_and_readable(tmp_path: Path) -> None:
    config = OmegaConf.create({"name": "类型#裙", "again": "${name}", "rows": [1, None, 1e-4]})
    path = tmp_path / "new" / "config.yaml"
    save(config, path)
    assert "类型#裙" in path.read_text(encoding="utf-8")
    assert load(path) == {"name": "类型#裙", "again": "类型#裙", "rows": [1, None, 1e-4]}
    assert [file.name for file in path.parent.iterdir()] == ["config.yaml"]


def test_what_cannot_be_resolved_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save(OmegaConf.create({"a": 1}), path)
    with pytest.raises(Exception, match="nowhere"):
        save(OmegaConf.create({"a": "${nowhere}"}), path)
    assert load(path) == {"a": 1}


@pytest.mark.parametrize("text", [None, "- a\n", "a: [\n", "a: ${\n"])
def test_what_is_no_configuration_is_refused_with_its_path(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(path)
    assert caught.value.problems[0].startswith(str(path))


def test_one_problem_is_a_line_and_several_are_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    for problems, printed in (("数据", "error: 数据\n"), (["one", "two"], "error: 2 problems\n  1. one\n  2. two\n")):
        with pytest.raises(SystemExit) as caught, exit_on_user_error():
            raise UserError(problems)
        assert caught.value.code == 2
        assert capsys.readouterr().err == printed


def test_as_a_decorator_it_leaves_other_errors_alone() -> None:
    @exit_on_user_error()
    def fails() -> None:
        raise ValueError("a fault of ours")

    with pytest.raises(ValueError, match="ours"):
        fails()
