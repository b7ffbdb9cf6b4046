from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra

from glm_lightning import config
from glm_lightning.config import arguments, compose, composing, places
from glm_lightning.config.command_line import FLAGS_WITH_VALUE, sources
from glm_lightning.types import UserError

FILES = {
    "train.yaml": """
defaults:
  - _self_
  - method: lora
  - trainer: default
  - data: rows
  - experiment: null
  - sweep: null
seed: 1
name: null
hydra:
  output_subdir: null
""",
    "method/lora.yaml": "rank: 8\nalpha: 16\n",
    "method/full.yaml": "{}\n",
    "trainer/default.yaml": "max_epochs: 3\nbetas: [0.9, 0.999]\nlr: 1e-4\n",
    "data/rows.yaml": "defaults:\n  - format: alpaca\ntrain: ???\n",
    "data/format/alpaca.yaml": "instruction: instruction\n",
    "data/format/messages.yaml": "messages: messages\n",
    "experiment/good.yaml": "# @package _global_\nseed: 2\n",
    "sweep/seeds.yaml": "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n",
}


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "conf"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(places, "conf_dir", lambda: folder)
    return folder


def problems(argv: list[str]) -> list[str]:
    with pytest.raises(UserError) as caught:
        arguments(argv)
    return caught.value.problems


@pytest.mark.usefixtures("conf")
class TestArguments:
    @pytest.mark.parametrize(
        "argv",
        [
            [],
            ["seed=3"],
            ["method=full", "data.train=a.jsonl"],
            ["experiment=good"],
            ["data/format=messages", "data.format.messages=turns"],
            ["+trainer.new=1", "++seed=4", "~method.rank"],
            ["trainer.betas.0=0.5"],
            ["~data"],
            ["~data=rows"],
            ["-m", "method=lora,full", "seed=1,2"],
            ["-m", "method=glob(*)", "seed=range(1,5)"],
            ["sweep=seeds", "trainer.lr=1e-4,1e-3"],
            ["--cfg", "job", "--help", "--package", "method", "seed=1"],
            ["hydra.run.dir=.", "hydra/job_logging=none", "hydra.anything=1"],
            ["name=a,b"],
            ['hydra.run.dir="."', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"],
        ],
    )
    def test_right_ones_pass_unchanged_or_quoted(self, argv: list[str]) -> None:
        assert arguments(argv) == [argument.replace("a,b", "'a,b'") for argument in argv]

    def test_quoting_again_changes_nothing(self) -> None:
        once = arguments(["data.train=数据 (1).jsonl", "name=a,b", "trainer.betas=[0.9,0.5]"])
        assert arguments(once) == once
        assert once[0] == "data.train='数据 (1).jsonl'"

    def test_an_unknown_option_lists_all_the_nearest_first(self) -> None:
        assert problems(["method=flul"]) == ["method is 'flul': must be one of full, lora (nearest first)"]
        assert problems(["method=lroa"]) == ["method is 'lroa': must be one of lora, full (nearest first)"]

    def test_null_is_no_option(self) -> None:
        assert problems(["method=null"]) == ["method is 'null': must be one of full, lora (nearest first)"]

    def test_an_unknown_key_names_the_nearest_and_those_beside_it(self) -> None:
        assert problems(["trainer.max_epoch=5"]) == [
            "trainer.max_epoch is 5: no such key; nearest: trainer.max_epochs; trainer has betas, lr, max_epochs"
        ]

    def test_a_key_without_its_group_is_found(self) -> None:
        assert "nearest: trainer.max_epochs;" in problems(["max_epochs=5"])[0]

    def test_an_unknown_group_is_an_unknown_key(self) -> None:
        assert "methd is full: no such key; nearest: method;" in problems(["methd=full"])[0]

    def test_the_keys_are_those_of_the_chosen_options(self) -> None:
        assert "method.rank is 4: no such key" in problems(["method=full", "method.rank=4"])[0]
        found = problems(["-m", "method=lora,full", "method.rank=4,8"])
        assert len(found) == 1
        assert found[0].endswith("(with method=full)")

    def test_keys_below_a_value_do_not_exist(self) -> None:
        assert "trainer.lr.x is 1: no such key" in problems(["trainer.lr.x=1"])[0]
        assert "trainer.betas.2 is 1: no such key" in problems(["trainer.betas.2=1"])[0]

    def test_a_sweep_needs_m(self) -> None:
        assert "several values need -m" in problems(["method=lora,full"])[0]
        assert "trainer.lr is 1e-4,1e-3: several values need -m" in problems(["trainer.lr=1e-4,1e-3"])[0]
        assert "a list is written trainer.betas=[0.9,0.5]" in problems(["trainer.betas=0.9,0.5"])[0]
        assert "several values need -m" in problems(["seed=range(1,5)"])[0]
        assert "several values need -m" in problems(["method=choice(lora,full)"])[0]

    def test_words_that_are_no_override(self) -> None:
        assert problems(["full"]) == ["full: must be key=value, as in method=full"]
        assert "'数据' is no key" in problems(["数据=1"])[0]

    def test_what_exists_cannot_be_added_and_what_does_not_cannot_go(self) -> None:
        assert "leave the + out" in problems(["+seed=3"])[0]
        assert "~method.rnk: no such key; nearest: method.rank" in problems(["~method.rnk"])[0]

    def test_all_problems_come_at_once(self) -> None:
        found = problems(["method=lroa", "trainer.max_epoch=5", "word", "数=1", "trainer.lr=1,2", "sed=1"])
        assert len(found) == 6

    def test_hydras_complaint_is_one_of_them(self) -> None:
        found = problems(["hydra.mode=MULTIRUN", "experiment=good,", "sed=3"])
        assert any("sed is 3" in problem for problem in found)

    def test_files_from_elsewhere_are_hydras_business(self) -> None:
        argv = ["--config-dir", "mine", "experiment=elsewhere", "name=数"]
        assert arguments(argv) == [*argv[:-1], "name='数'"]

    def test_another_primary_config_is_looked_into(self, conf: Path) -> None:
        (conf / "other.yaml").write_text("only: 1\n", encoding="utf-8")
        assert arguments(["--config-name", "other", "only=2"])
        assert "seed is 2: no such key" in problems(["--config-name=other", "seed=2"])[0]


def test_flags_with_a_value_are_hydras() -> None:
    actions = [action for action in get_args_parser()._actions if action.option_strings and action.nargs != 0]
    assert {flag for action in actions for flag in action.option_strings} == FLAGS_WITH_VALUE


def test_sources_are_the_flags_that_lead_to_yaml_files() -> None:
    argv = ["-m", "--config-dir", "mine", "seed=1", "-cn=other", "hydra.searchpath=[x]", "--config-name", "y"]
    assert sources(argv) == ["--config-dir", "mine", "-cn=other", "hydra.searchpath=[x]", "--config-name", "y"]


@pytest.mark.usefixtures("conf")
class TestCompose:
    def test_it_takes_what_a_shell_user_types(self) -> None:
        composed = compose(["data.train=[数据1.jsonl,b c.jsonl]", "name=类型#裙", "method=full", "experiment=good"])
        assert composed.data.train == ["数据1.jsonl", "b c.jsonl"]
        assert composed.name == "类型#裙"
        assert composed.seed == 2
        assert "rank" not in composed.method
        assert "hydra" not in composed

    def test_it_refuses_as_the_command_line_does(self) -> None:
        with pytest.raises(UserError, match=r"nearest: trainer\.max_epochs"):
            compose(["trainer.max_epoch=1"])

    def test_hydras_own_state_is_left_as_it_was(self) -> None:
        compose()
        assert not GlobalHydra.instance().is_initialized()
        import hydra

        with hydra.initialize_config_dir(str(places.conf_dir()), version_base="1.3"):
            before = GlobalHydra.instance().hydra
            compose(["seed=3"])
            assert GlobalHydra.instance().hydra is before


def test_conf_lies_beside_the_entry_point() -> None:
    assert (config.conf_dir() / "train.yaml").is_file()
    assert config.entry_point().is_file()


def test_every_file_of_conf_composes() -> None:
    with composing.opened() as loader:
        found = composing.groups(loader)
        assert {"method", "model", "trainer", "sweep"} <= found.keys()
        del found["launcher"]  # is of packages that may not be here; tests/test_conf.py composes those that are
        for group, options in found.items():
            for option in options:
                assert composing.composed([f"{group}={option}"])


def test_rows_of_ones_own_come_without_the_demos_settings() -> None:
    alone = compose(["data.train=mine.jsonl"])
    assert (alone.data.format, alone.data.val, alone.data.max_length) == ("auto", "auto", 1024)
    assert arguments(["data.train=mine.jsonl", "seed=3"]) == ["data.train=mine.jsonl", "seed=3", "data=auto"]
    for said in (["data=alpaca"], ["data=demo"], ["resume=somewhere"]):
        assert arguments(["data.train=mine.jsonl", *said]) == ["data.train=mine.jsonl", *said]
    asked = ["data.train=mine.jsonl", "experiment=adgen_chatglm_6b_lora"]
    assert arguments(asked) == asked, "an experiment says itself how its rows are read"
    assert arguments(["data.train=mine.jsonl", "experiment=cpu"])[-1] == "data=auto"
    assert compose(["data.max_length=64"]).data.train.endswith("demo/data/train.jsonl")
