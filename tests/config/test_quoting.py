from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from glm_lightning.config.quoting import quote, unquoted

TYPED = {
    "data.train=数据.jsonl": "数据.jsonl",
    "data.train=my file (1).jsonl": "my file (1).jsonl",
    "name=类型#裙*材质#棉": "类型#裙*材质#棉",
    r"model.path=C:\x": r"C:\x",
    "model.path=C:\\模型\\": "C:\\模型\\",
    "name=it's": "it's",
    'name=say "hi"': 'say "hi"',
    "name=a,b": "a,b",
    "name=a=b": "a=b",
    "name=100%": "100%",
    "name=": "",
    "name=，。（）": "，。（）",
    "data.train=[数据1.jsonl,数据2.jsonl]": ["数据1.jsonl", "数据2.jsonl"],
    "data.train=[a.jsonl, 数 据(2).jsonl]": ["a.jsonl", "数 据(2).jsonl"],
    "data.train=['已,引', x#y]": ["已,引", "x#y"],
    "x={路: 值}": "{路: 值}",
    "x={k: 值, n: 3}": {"k": "值", "n": 3},
    "x=[[甲,1],[乙,2]]": [["甲", 1], ["乙", 2]],
    "optimizer.lr=1e-4": 1e-4,
    "optimizer.betas=[0.9,0.95]": [0.9, 0.95],
    "resume=null": None,
}


def read(argument: str) -> Override:
    return OverridesParser.create().parse_override(argument)


@pytest.mark.parametrize("typed", TYPED)
def test_a_shell_users_text_arrives(typed: str) -> None:
    assert read(quote(typed, multirun=False)).value() == TYPED[typed]


SWEEPS = {
    "method=lora,full": ["lora", "full"],
    "data.train=数据1.jsonl,b c (1).jsonl": ["数据1.jsonl", "b c (1).jsonl"],
    "data.train=[甲,乙],丙": ["[甲,乙]", "丙"],
    "name=it's,b#c": ["it's", "b#c"],
    "name='已,引',数": ["已,引", "数"],
    "name=数(1,2),b": ["数(1,2)", "b"],
    "name=甲'x,y',b": ["甲'x", "y'", "b"],
    "name=数(1,b": ["数(1", "b"],
    "optimizer.lr=1e-4,1e-3": ["0.0001", "0.001"],
}


@pytest.mark.parametrize("typed", SWEEPS)
def test_under_multirun_commas_separate_values(typed: str) -> None:
    override = read(quote(typed, multirun=True))
    values = [read(f"name={value}").value() for value in override.sweep_string_iterator()]
    expected = [read(quote(f"name={value}", multirun=False)).value() for value in SWEEPS[typed]]
    assert values == expected


def test_a_single_value_under_multirun_is_no_sweep() -> None:
    override = read(quote("name=类型#裙", multirun=True))
    assert not override.is_sweep_override()
    assert override.value() == "类型#裙"


def is_hydras(text: str) -> bool:
    """Whether the grammar reads the text as a value of its own: then that is what it means."""
    try:
        override = read(f"name={text}")
    except (HydraException, ValueError):
        return False
    return not (
        override.is_choice_sweep() and "," in text and not text.lstrip().startswith(("choice", "shuffle", "sort"))
    )


def is_container(text: str) -> bool:
    """``[...]`` and ``{...}`` are lists and mappings, whose elements are quoted."""
    return text.strip()[:1] + text.strip()[-1:] in ("[]", "{}")


lines = st.text(st.characters(exclude_characters="\n\r", exclude_categories=("Cs",)))
shell_like = st.text(st.sampled_from("ab1 ,'\"\\()[]{}#*=:$%@?!~+-./类裙、"), max_size=20)


@settings(max_examples=150, deadline=None)
@given(lines | shell_like)
@example("\\")
@example("'")
@example("a\\'b")
@example("'\\")
@example("a,b\\")
def test_any_text_comes_back(text: str) -> None:
    argument = quote(f"name={text}", multirun=False)
    if is_hydras(text):
        assert argument == f"name={text}"
    elif not is_container(text):
        assert read(argument).value() == text


@settings(max_examples=100, deadline=None)
@given(shell_like, st.booleans())
def test_quoting_is_idempotent_and_always_accepted(text: str, multirun: bool) -> None:
    once = quote(f"name={text}", multirun=multirun)
    assert read(once) is not None
    assert quote(once, multirun=multirun) == once
    if not read(once).is_sweep_override():
        assert quote(once, multirun=False) == once  # a sweep's job starts its ranks without -m


def test_an_interpolation_stays_one() -> None:
    value = read(quote("b=数据/${a}.jsonl", multirun=False)).value()
    assert OmegaConf.create({"a": "x", "b": value}).b == "数据/x.jsonl"


def test_what_is_no_override_is_left_alone() -> None:
    assert quote("数据", multirun=False) == "数据"
    assert quote("数据=1", multirun=False) == "数据=1"
    assert quote("~method.rank", multirun=False) == "~method.rank"


@pytest.mark.parametrize(
    "typed", ["name=类型#裙", "data.train=我的 (1).jsonl", "lr=1e-4", "x=[a,b]", "x={a: 1}", "x=", "+x=null"]
)
def test_what_was_quoted_can_be_typed_again(typed: str) -> None:
    assert unquoted(quote(typed, multirun=False)) == typed
