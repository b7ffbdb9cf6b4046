from __future__ import annotations

import inspect
import os
import sys
import types as types_module
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from omegaconf import OmegaConf

from glm_lightning.config import check
from glm_lightning.types import UserError

if TYPE_CHECKING:
    from nowhere import Unknown


class Plain:
    pass


class Base:
    def __init__(self, given: object, *, rank: int = 8, name: str) -> None: ...


class Inheriting(Base):
    pass


@dataclass(frozen=True)
class Data:
    path: Path
    size: int | None = None


def types(
    *,
    whole: int = 0,
    number: float = 0.0,
    flag: bool = False,
    text: str = "",
    maybe: int | None = None,
    path: str | os.PathLike[str] = "",
    choice: Literal["sdpa", "eager", 3] = "sdpa",
    mixed: Literal["auto"] | int | list[str] = "auto",
    pair: tuple[float, float] = (0.0, 1.0),
    names: Sequence[str] = (),
    many: Iterable[int] = (),
    table: Mapping[str, float] | None = None,
    plain: Plain | None = None,
    call: Callable[[int], int] | None = None,
    anything: Any = None,
    untyped=None,
) -> None: ...


def taking_more(first: int, **more: Any) -> None: ...


def half_known(unknown: Unknown = None, known: int = 1) -> None: ...


NOT_CALLABLE = 3
HERE = "binding_targets"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names above under a module of their own, whatever pytest calls this file."""
    module = types_module.ModuleType(HERE)
    vars(module).update(vars(sys.modules[__name__]))
    monkeypatch.setitem(sys.modules, HERE, module)


def node(target: str, **keys: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{target}", **keys}


def problems(tree: dict[str, Any], provided: dict[str, set[str]] | None = None) -> list[str]:
    try:
        check(OmegaConf.create(tree), provided=provided or {})
    except UserError as error:
        return error.problems
    return []


FITS = [
    ("whole", 3), ("number", 3), ("number", 3.5), ("number", float("inf")), ("flag", True), ("text", "数据"),
    ("maybe", None), ("maybe", 3), ("path", "a/b"), ("choice", "eager"), ("choice", 3), ("mixed", "auto"),
    ("mixed", 4), ("mixed", ["a"]), ("pair", [0.5, 1]), ("names", ["a", "b"]), ("names", []), ("many", [1, 2]),
    ("table", {"a": 1.5}), ("plain", None), ("plain", node("Plain")), ("whole", node("Plain")),
    ("names", [node("Plain")]), ("call", node("taking_more", first=1)), ("anything", [{"a": None}]), ("untyped", 3),
]  # fmt: skip

NODE = "that is, keys with a _target_ or null"
MISFITS = [
    ("whole", "3", "a whole number"), ("whole", 3.5, "a whole number"), ("whole", True, "a whole number"),
    ("whole", None, "a whole number"), ("number", "1e-4", "a number"), ("number", False, "a number"),
    ("flag", 1, "true or false"), ("flag", "yes", "true or false"), ("text", 3, "text"), ("text", None, "text"),
    ("maybe", "x", "a whole number or null"), ("path", 3, "text or a path"),
    ("choice", "eagre", "one of sdpa, eager, 3"), ("mixed", [1], "auto or a whole number or a list [text, ...]"),
    ("mixed", "all", "auto or a whole number or a list [text, ...]"), ("pair", [0.5], "a list [a number, a number]"),
    ("pair", [0.5, "x"], "a list [a number, a number]"), ("names", "abc", "a list [text, ...]"),
    ("names", [1], "a list [text, ...]"), ("many", ["x"], "a list [a whole number, ...]"),
    ("table", {"a": "x"}, "keys with values {key: a number, ...} or null"), ("plain", "Plain", f"a Plain, {NODE}"),
    ("call", "print", f"a function, {NODE}"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), FITS)
def test_fitting_values_pass(key: str, value: Any) -> None:
    assert problems({"a": node("types", **{key: value})}) == []


@pytest.mark.parametrize(("key", "value", "rule"), MISFITS)
def test_others_are_told_the_rule(key: str, value: Any, rule: str) -> None:
    (problem,) = problems({"a": node("types", **{key: value})})
    assert problem.startswith(f"a.{key} is ")
    assert f": must be {rule}" in problem


def test_the_nearest_of_the_allowed_values_is_named() -> None:
    (problem,) = problems({"a": node("types", choice="eagre")})
    assert problem == "a.choice is 'eagre': must be one of sdpa, eager, 3; nearest: eager"


def test_an_unknown_key_names_the_nearest_and_all() -> None:
    (problem,) = problems({"a": node("Inheriting", rnak=4, name="x")}, {"a": {"given"}})
    assert problem == "a.rnak is 4: no such key; nearest: rank; Inheriting takes name, rank"
    (problem,) = problems({"a": node("Plain", x=1)})
    assert problem == "a.x is 1: no such key; Plain takes no keys"


def test_open_signatures_take_any_key() -> None:
    assert problems({"a": node("taking_more", first=1, second="x")}) == []
    assert "a.first is missing" in problems({"a": node("taking_more", second="x")})[0]


def test_a_missing_argument_is_told_unless_it_comes_later() -> None:
    assert problems({"a": {"b": node("Base", given=None)}}) == ["a.b.name is missing: must be text; give a.b.name=..."]
    assert problems({"a": {"b": node("Base")}}, {"a.b": {"given", "name"}}) == []
    assert problems({"a": node("Base", _partial_=True)}) == []
    assert problems({"a": node("Base", _partial_=True, rank="x")}) != []


def test_a_value_that_is_given_at_run_time_is_not_judged() -> None:
    assert problems({"a": node("Base", given=None, name=3)}, {"a": {"name"}}) == []


def test_dataclasses_are_bound_by_their_fields() -> None:
    assert problems({"a": node("Data", path="x")}) == []
    assert "a.size is 'x': must be a whole number or null" in problems({"a": node("Data", path="x", size="x")})


def test_nodes_are_found_however_deep() -> None:
    wrong = node("types", whole="x")
    found = problems({"a": {"b": [{"c": wrong}, node("types", plain=wrong)]}})
    assert [problem.partition(" ")[0] for problem in found] == ["a.b.0.c.whole", "a.b.1.plain.whole"]


def test_missing_values_and_broken_interpolations_are_told_once() -> None:
    found = problems({"a": node("types", whole="???", text="${nowhere.x}"), "top": "???"})
    assert found[0] == "a.whole is missing: must be given, as in a.whole=..."
    assert found[1].startswith("a.text is ${nowhere.x}: ")
    assert found[2] == "top is missing: must be given, as in top=..."
    assert len(found) == 3


def test_interpolations_are_judged_by_what_they_lead_to() -> None:
    assert problems({"x": 3, "a": node("types", whole="${x}")}) == []
    assert problems({"x": "y", "a": node("types", whole="${x}")}) == ["a.whole is 'y': must be a whole number"]


def test_targets_that_cannot_be_imported() -> None:
    assert problems({"a": node("Plian")}) == [f"a._target_ is '{HERE}.Plian': {HERE} has no Plian; nearest: Plain"]
    assert "there is no module nowhere" in problems({"a": {"_target_": "nowhere.at.All"}})[0]
    assert "must be a class or a function" in problems({"a": node("NOT_CALLABLE")})[0]
    assert "must be a class or a function" in problems({"a": {"_target_": "os.path"}})[0]
    assert "must be module.Name" in problems({"a": {"_target_": "print"}})[0]
    near = problems({"a": {"_target_": "glm_lightning.config.storge.load"}})[0]
    assert "nearest: storage" in near


def test_an_import_that_fails_inside_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    (problem,) = problems({"a": {"_target_": "needs_more.Thing"}})
    assert "importing needs_more fails: No module named 'surely_not_installed'" in problem


def test_annotations_that_cannot_be_read_are_let_pass_and_the_others_judged() -> None:
    assert problems({"a": node("half_known", unknown=object.__name__)}) == []
    assert problems({"a": node("half_known", known="x")}) == ["a.known is 'x': must be a whole number"]
    assert problems({"a": node("half_known", knwon=1)}) != []


def test_all_problems_come_at_once() -> None:
    tree = {"a": node("types", whole="x", nmber=1), "b": node("Base"), "c": {"_target_": "no.no"}, "d": "???"}
    assert len(problems(tree)) == 6


def test_every_signature_is_what_python_would_bind() -> None:
    """Whatever is accepted can be bound, and whatever cannot be bound is refused."""
    for keys in ({}, {"rank": 1}, {"name": "x"}, {"given": 1, "name": "x"}, {"given": 1, "name": "x", "no": 1}):
        try:
            inspect.signature(Base).bind(**keys)
            binds = True
        except TypeError:
            binds = False
        assert (problems({"a": node("Base", **keys)}) == []) == binds


def test_lightnings_trainer_is_judged() -> None:
    trainer = {"_target_": "lightning.pytorch.Trainer", "max_epochs": 3, "devices": 1, "precision": "bf16-mixed"}
    assert problems({"trainer": trainer}) == []
    found = problems({"trainer": trainer | {"max_epoch": 3, "precision": "bf16-mixd", "devices": 1.5}})
    assert len(found) == 3
    assert any("nearest: max_epochs" in problem for problem in found)
    assert any("nearest: bf16-mixed" in problem for problem in found)
