"""Every file of conf/: it composes, binds, is explained, and says all that its target takes."""

import inspect
import re
from functools import cache
from importlib.util import find_spec

import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from tiny_runs import ROOT

from glm_lightning import config
from glm_lightning.config import composing
from glm_lightning.training.run import PROVIDED, with_autos_set

CONF = ROOT / "conf"
FILES = sorted(file.relative_to(CONF) for file in CONF.rglob("*.yaml") if file.parent != CONF)
GIVEN = {"model.path": "somewhere", "data.train": "somewhere.jsonl"}
"""What stands for values that only users know."""

LAUNCHERS = {
    "slurm": "hydra_plugins.hydra_submitit_launcher",
    "slurm_local": "hydra_plugins.hydra_submitit_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
}
"""Optional packages that conf/launcher/ is made of."""

RUN_TIME = {"num_steps"}
"""Keyword arguments that a run gives to what it builds, beside those of PROVIDED."""

KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?P<rest>.*)$")


def name_of(file):
    return file.with_suffix("").as_posix()


@pytest.fixture(scope="module")
def hydra():
    with composing.opened():
        yield


@cache
def composed(file):
    """The whole configuration with this file in it."""
    if file.parts[0] == "launcher" and find_spec(LAUNCHERS[file.stem]) is None:
        pytest.skip(f"{LAUNCHERS[file.stem]} is not installed")
    tree = composing.composed([f"{file.parent.as_posix()}={file.stem}"])
    tree.run_dir = "somewhere"
    for key in OmegaConf.missing_keys(tree):
        OmegaConf.update(tree, key, GIVEN[key])
    return tree


def targets(node, path):
    """Every node with a target, with its path."""
    if not isinstance(node, DictConfig):
        return
    if "_target_" in node:
        yield path, node
    for key in node:
        yield from targets(node[key], f"{path}.{key}")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_composes_and_binds(hydra, file):
    config.check(with_autos_set(composed(file)), provided=PROVIDED)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_says_all_that_its_target_takes(hydra, file):
    group = file.parts[0]
    for path, node in targets(composed(file)[group] if group in composed(file) else OmegaConf.create(), group):
        if not node._target_.startswith("glm_lightning."):
            continue
        parameters = inspect.signature(get_object(node._target_)).parameters
        given_at_run_time = RUN_TIME | set(PROVIDED.get(path, ()))
        if node.get("_partial_"):
            given_at_run_time |= {key for key, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
        keys = {key for key in node if key not in ("_target_", "_partial_")}
        assert keys == parameters.keys() - given_at_run_time, path


def leaves(file):
    """Path, value and whether there is a comment on the line, of every key of a yaml that holds a value."""
    lines = (CONF / file).read_text(encoding="utf-8").splitlines()
    stack: list[tuple[int, str]] = []
    matches = [KEY.match(line) for line in lines]
    for match in filter(None, matches):
        indent = len(match["indent"])
        while stack and stack[-1][0] >= indent:
            stack.pop()
        stack.append((indent, match["key"]))
        value, hash_sign, comment = match["rest"].partition("#")
        if value.strip() and match["key"] not in ("_target_", "_partial_", "defaults"):
            yield ".".join(key for _, key in stack), value.strip(), bool(hash_sign and comment.strip())


def _in_tree(file, path):
    """Where a key comes to stand in the whole configuration."""
    if "@package _global_" in (CONF / file).read_text(encoding="utf-8").splitlines()[0]:
        return path
    return f"{file.parent.as_posix()}.{path}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_is_explained(file):
    """A comment on each line with a value. One that is set anew may be explained where it is set first; an
    interpolation is explained by what it leads to."""
    explained = {_in_tree(other, path) for other in FILES for path, _, comment in leaves(other) if comment}
    bare = [
        path
        for path, value, comment in leaves(file)
        if not comment and _in_tree(file, path) not in explained and not value.startswith("${")
    ]
    assert bare == []
    first = (CONF / file).read_text(encoding="utf-8").splitlines()[:2]
    assert any(line.startswith("# ") and "@package" not in line for line in first)


def test_the_reader_of_comments_sees_keys():
    seen = {path: comment for path, _, comment in leaves(FILES[0].parent / FILES[0].name)}
    assert any(seen.values())
    assert len(list(leaves(CONF / "data" / "default.yaml"))) > 10
