"""The models that are evaluated side by side, and the rows that they are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glm_lightning import config as configuration
from glm_lightning.config.making import made
from glm_lightning.config.targets import found as class_at
from glm_lightning.data.module import DataModule
from glm_lightning.inference.loading import Found, base_of, resolve
from glm_lightning.models import precision
from glm_lightning.models.source import Hub, WeightsDtype
from glm_lightning.objectives.likelihood import Likelihood
from glm_lightning.runs import RunFolder
from glm_lightning.types import Problems, UserError

ROWS = ("train", "val", "test", "format", "encoding", "split", "seed", "max_length")
"""Keys of a run's data that decide which rows it was measured on."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under its name, and the run that it comes from or that began with it, if there is one."""

    name: str
    found: Found
    run: RunFolder | None
    is_base: bool = False

    @property
    def config(self) -> Any:
        """The run's configuration; None without one."""
        return None if self.run is None else stored(self.run)

    @property
    def other_objective(self) -> str | None:
        """What its run minimised, where that was no cross-entropy of its rows."""
        target = None if self.run is None else str(self.config.objective._target_)
        return None if target is None or issubclass(class_at(target), Likelihood) else target.split(".")[-2]


class Arithmetic(NamedTuple):
    """What a model is held in (None: as `glm_lightning.load` does), and the precision of its forward passes."""

    dtype: WeightsDtype | None
    precision: str


def stored(run: RunFolder) -> Any:
    """The configuration of a run.

    Raises:
        UserError: it cannot be read, or would call what no run of ours calls.
    """
    config = configuration.load(run.config)
    configuration.refuse_foreign(config, path=run.config)
    return config


def subjects(sources: Sequence[str], *, base: bool, hub: Hub | None) -> list[Subject]:
    """The models in their order; with ``base``, what each of them began with before it, once.

    Raises:
        UserError: everything that is not there.
    """
    problems = Problems()
    every: list[Subject] = []
    for source in sources:
        folder = Path(source).expanduser()
        run = RunFolder(folder.absolute()) if (folder / "config.yaml").is_file() else None
        with problems.noted():
            began = base_of(source, hub=hub) if base else None
            if began is not None and not any(each.is_base and each.found.base == began.base for each in every):
                every.append(Subject(f"base {began.base.path}", began, run, is_base=True))
        with problems.noted():
            found = resolve(source, hub=hub)
            found.base.check()
            every.append(Subject(folder.name or source, found, run))
    problems.raise_if_any()
    return _named_apart(every)


def _named_apart(every: Sequence[Subject]) -> list[Subject]:
    """With a number behind names that others have, too."""
    names: dict[str, int] = {}
    apart = []
    for each in every:
        names[each.name] = names.get(each.name, 0) + 1
        name = each.name if names[each.name] == 1 else f"{each.name} ({names[each.name]})"
        apart.append(Subject(name, each.found, each.run, each.is_base))
    return apart


def arithmetic(subject: Subject, *, dtype: WeightsDtype | None, device: str) -> Arithmetic:
    """That of the run, where there is one and ``dtype`` asks for no other: so are its figures had again."""
    config = subject.config
    if dtype is not None or config is None:
        return Arithmetic(dtype, "32-true")
    base = subject.found.base
    asked = str(config.trainer.precision)
    chosen = precision.choose(asked, device=device, num_parameters=base.num_parameters).name
    method: Any = class_at(config.method._target_)
    held = precision.weights_dtype(chosen, trains_base=method.trains_base, stored=base.stored_dtype)
    return Arithmetic(held, chosen)


def own_rows(every: Sequence[Subject]) -> Callable[[], DataModule]:
    """Makes the data of the runs among the subjects, for each tokenizer anew.

    Raises:
        UserError: there is no run, or they were measured on different rows.
    """
    runs = {subject.run.path: subject for subject in every if subject.run is not None}
    if not runs:
        raise UserError("--data is missing: only a run has rows of its own, and none of these is one; say --data FILE")
    pairs = [str(path) for path, subject in runs.items() if subject.other_objective == "preference"]
    if pairs:
        raise UserError(
            f"{', '.join(pairs)}: learned from pairs, which ask nothing; say which rows are asked: --data FILE"
        )
    nodes = {path: subject.config.data for path, subject in runs.items()}
    (first, node), *others = nodes.items()
    problems = [
        f"{path}: was measured on other rows than {first} (data.{key} is {other.get(key)!r}, not {node.get(key)!r}); "
        "say which rows all are asked: --data FILE"
        for path, other in others
        for key in ROWS
        if other.get(key) != node.get(key)
    ]
    if problems:
        raise UserError(problems)
    return lambda: made(node, "data")


def given_rows(
    files: Sequence[str],
    every: Sequence[Subject],
    *,
    format: str,
    encoding: str | None,
    max_length: int | None,
    skip_bad_rows: bool,
) -> Callable[[], DataModule]:
    """Makes the data of ``files``, with the lengths of the first run among the subjects."""
    node: Any = next((subject.config.data for subject in every if subject.run is not None), {})
    longest = max_length or node.get("max_length", 1024)
    multiple = node.get("pad_to_multiple", 64)
    return lambda: DataModule(
        train=list(files),
        format=format,
        encoding=encoding,
        max_length=longest,
        max_tokens=max(node.get("max_tokens", 4096), -(-longest // multiple) * multiple),
        pad_to_multiple=multiple,
        on_bad_row="quarantine" if skip_bad_rows else "error",
        max_bad_share=1.0,
        cache_dir=node.get("cache_dir"),
    )
