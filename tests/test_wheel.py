"""What pyproject.toml says a wheel holds is there, and is where the package looks for it."""

import tomllib
from pathlib import PurePosixPath

from tiny_runs import ROOT

import glm_lightning
from glm_lightning import config

WHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
    "wheel"
]


def test_forced_files_land_where_the_package_looks():
    forced = {source: PurePosixPath(target) for source, target in WHEEL["force-include"].items()}
    assert all((ROOT / source).exists() for source in forced)
    for place in (config.conf_dir(), config.entry_point()):
        # in a checkout beside the package, in a wheel inside it, under the same name
        assert place.parent == ROOT
        assert forced[place.name] == PurePosixPath(glm_lightning.__name__) / place.name


def test_files_that_are_no_code_lie_in_the_package():
    (package,) = WHEEL["packages"]
    files = {file.relative_to(ROOT / package).as_posix() for file in (ROOT / package).rglob("*") if file.is_file()}
    assert files >= {
        "py.typed",
        "demo/model/config.json",
        "demo/model/model.safetensors",
        "demo/model/tokenizer.json",
        "demo/data/train.jsonl",
        "demo/data/val.jsonl",
        "demo/data/test.jsonl",
    }
