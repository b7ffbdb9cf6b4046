"""Where the yaml files and the entry point lie."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

import glm_lightning


def register() -> None:
    """What stands for a value in a yaml: ``${package:demo/data/train.jsonl}`` for a file that travels with the package,
    ``${times:0.1,2e-4}`` for a product.
    """
    OmegaConf.register_new_resolver("package", _in_package, replace=True)
    OmegaConf.register_new_resolver("times", lambda one, other: float(f"{one * other:.12g}"), replace=True)


def _in_package(path: str) -> str:
    return str(Path(glm_lightning.__file__).absolute().parent / path)


def conf_dir() -> Path:
    """The folder of the yaml files: inside the package in a wheel, beside it in a checkout."""
    package = Path(glm_lightning.__file__).absolute().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def entry_point() -> Path:
    """train.py; it lies beside `conf_dir`."""
    return conf_dir().parent / "train.py"


def command() -> str:
    """How a user starts a run: from a checkout, or from an installed wheel."""
    return "glm train" if (entry_point().parent / "__init__.py").exists() else "python train.py"
