"""What a run goes on from: what another run has learned, as the start of the same adapter or as part of its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from glm_lightning.config import made
from glm_lightning.data.dataset import Dataset
from glm_lightning.data.module import DataModule
from glm_lightning.export import export_model
from glm_lightning.files import lock, read_json
from glm_lightning.inference import adapters
from glm_lightning.objectives.base import Objective
from glm_lightning.runs import RunFolder
from glm_lightning.runs.checkpoints import load_trained
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.training import forgetting, placing, resuming
from glm_lightning.types import Conversation, Document, UserError

KINDS = ("auto", "adapter", "base")
"""Values of ``init_as``."""

FREE = ("dropout", "lr_ratio")
"""Knobs of a method that an adapter may be trained further with: others change what its numbers mean."""

MERGED = "base"
"""Folder in a run's own for a base that has an earlier adapter in its weights."""


def resolve(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """``config`` with the model that ``init_from`` names and, where its adapter goes on, its method.

    Raises:
        UserError: there is nothing finished there, or it does not go with the rest.
    """
    if config.init_from is None or config.resume is not None:
        return config
    if config.init_as not in KINDS:
        raise UserError(f"init_as is {config.init_as!r}: must be one of {', '.join(KINDS)}")
    folder = Path(config.init_from).expanduser().absolute()
    if (folder.parent / "config.yaml").is_file() and adapters.is_adapter(folder):
        folder = folder.parent
    run = RunFolder(folder)
    if not run.config.is_file():
        return _from_others(config, folder)
    if not run.finished:
        raise UserError(f"init_from is {config.init_from!r}: this run is not finished; go on with it: resume={folder}")
    return _from_run(config.copy(), run, resuming.values(overrides))


def _from_run(config: DictConfig, run: RunFolder, given: dict[str, Any]) -> DictConfig:
    stored = resuming.stored_in(run)
    if not any(key.partition(".")[0] in ("data", "objective", "experiment") for key in given):
        raise UserError(
            f"init_from is {config.init_from!r}: say what is learned now: data.train=FILE (or objective=...); the same "
            f"rows once more are resume={run.path} trainer.max_epochs=..."
        )
    same = config.method._target_ == stored.method._target_
    as_adapter = run.artefact("adapter").is_dir() and (
        config.init_as == "adapter" or (config.init_as == "auto" and same)
    )
    if config.init_as == "adapter" and not (as_adapter and same):
        raise UserError(
            f"init_as is adapter: {run.path} was trained by {stored.method._target_.rpartition('.')[2]}, whose "
            "adapter alone can go on; leave method=... and init_as=... out, or set init_as=base"
        )
    config.init_from, config.init_as = str(run.path), "adapter" if as_adapter else "base"
    config.model = _with_given(stored.model, config.model, given, "model")
    if as_adapter:
        if fixed := [key for key in given if key.startswith("method.") and key.partition(".")[2] not in FREE]:
            raise UserError(
                [
                    f"{key} is {given[key]}: an adapter that goes on keeps it; leave it out, or set init_as=base"
                    for key in fixed
                ]
            )
        config.method = _with_given(stored.method, config.method, given, "method")
        config.quantize = config.model.quantize = stored.quantize
        return config
    config.model.quantize = config.quantize
    if run.artefact("model").is_dir():
        return _on(config, run.artefact("model"))
    return _on(config, _merged(run.path, RunFolder(Path(config.run_dir)).path / MERGED))


def _from_others(config: DictConfig, folder: Path) -> DictConfig:
    """From an adapter of another tool, which becomes part of its base, or from a model folder."""
    if config.init_as == "adapter":
        raise UserError(f"init_as is adapter: {folder} is no run of ours; leave init_as out")
    config = config.copy()
    config.init_from, config.init_as = str(folder), "base"
    if adapters.is_adapter(folder):
        return _on(config, _merged(folder, RunFolder(Path(config.run_dir)).path / MERGED))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"init_from is {config.init_from!r}: neither a run nor an adapter nor a model folder lies there"
        )
    return _on(config, folder)


def _with_given(stored: DictConfig, composed: DictConfig, given: dict[str, Any], group: str) -> DictConfig:
    """``stored`` with the single values of ``group`` that the command line gives."""
    keys = [key.partition(".")[2] for key in given if key.startswith(f"{group}.")]
    changes = {key: OmegaConf.select(composed, key) for key in keys}
    made_of = stored.copy()
    for key, value in changes.items():
        OmegaConf.update(made_of, key, value)
    return made_of


def _on(config: DictConfig, folder: Path) -> DictConfig:
    """``config`` on the model in ``folder``."""
    known = {"path": str(folder), "hub": "huggingface", "revision": None, "num_layers": None}
    if (folder / adapters.ABOUT).is_file():
        known["template"] = adapters.about(folder, needs=("template",))["template"]
    for key, value in known.items():
        config.model[key] = value
    return config


def _merged(source: Path, out: Path) -> Path:
    """The whole model of a run or an adapter, written once however many ranks ask for it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with lock(out.with_name(f".{out.name}.lock")):
        if not out.is_dir():
            try:
                export_model(source, out)
            except UserError as error:
                raise UserError(
                    [f"init_as is base: {problem}; init_as=adapter goes on with it" for problem in error.problems]
                ) from None
    return out


def values(config: DictConfig) -> dict[str, Tensor] | None:
    """What the adapter begins with, by parameter; None where it begins anew.

    Raises:
        UserError: the earlier run has kept no weights that could go on.
    """
    if config.get("init_from") is None or config.init_as != "adapter":
        return None
    if placing.is_sharded(config):
        raise UserError(
            f"init_as is adapter: does not go with trainer.strategy={config.trainer.strategy}; set init_as=base, "
            "or use trainer=ddp"
        )
    run = RunFolder(Path(config.init_from))
    kept = run.best if run.read_report().get("weights") == "best" else run.last
    if not kept.is_dir():
        raise UserError(f"init_from is {config.init_from!r}: its checkpoints are gone; set init_as=base")
    return load_trained(kept)


def ancestors(config: DictConfig) -> list[dict[str, Any]]:
    """The runs that a run goes on from, the oldest first: what each learned, from what, and what came of it."""
    if config.get("init_from") is None:
        return []
    run = RunFolder(Path(config.init_from))
    if not run.finished:
        return [{"run": str(run.path)}]
    stored, report = resuming.stored_in(run), run.read_report()
    told = {
        "run": str(run.path),
        "method": stored.method._target_.rpartition(".")[2],
        "objective": stored.objective._target_.rpartition(".")[2],
        "went_on_as": config.init_as,
        "steps": report["steps"],
        "metrics": report["metrics"],
        "data": {
            name: {key: part[key] for key in ("files", "fingerprint", "samples")}
            for name, part in read_json(run.data).items()
        },
    }
    return [*(read_json(run.ancestors) if run.ancestors.is_file() else []), told]


def earlier(
    config: DictConfig, tokenizer: Tokenizer, template: Template, *, learned: Dataset
) -> tuple[dict[str, Dataset], list[str]]:
    """General rows, the validation rows of all ancestors by the run's name, and what could not be read of them.

    Rows that are among the ``learned`` ones say nothing of what is forgotten, and are left out.
    """
    found: dict[str, Dataset] = {}
    problems: list[str] = []
    if config.get("general") is not None:
        data = DataModule(
            train=config.general,
            max_length=config.data.max_length,
            max_tokens=config.data.max_tokens,
            cache_dir=config.data.cache_dir,
        )
        found[forgetting.GENERAL] = data.load(tokenizer, template).train
    for ancestor in ancestors(config):
        run = RunFolder(Path(ancestor["run"]))
        if not run.config.is_file():
            continue
        try:
            stored = resuming.stored_in(run)
            objective = cast(Objective, made(stored.objective, "objective"))
            if not set(objective.learns) <= {Conversation, Document}:
                continue
            data = cast(DataModule, made(stored.data, "data"))
            val = data.load(tokenizer, template, learned=objective.learns).val
        except UserError as error:
            problems += [
                f"{run.path.name}: what is forgotten of it cannot be measured: {each}" for each in error.problems
            ]
            continue
        if val is not None:
            found[run.path.name] = val
    fresh = {
        name: part.subset(np.flatnonzero(~np.isin(part.contents, learned.contents))) for name, part in found.items()
    }
    return {name: part for name, part in fresh.items() if len(part)}, problems


def replayed(config: DictConfig) -> DictConfig:
    """``config`` with a share of the ancestors' training rows among its own, as ``replay`` says.

    Raises:
        UserError: there is nobody whose rows could be learned again.
    """
    if not config.replay or config.resume is not None:
        return config
    if not 0 < config.replay < 1:
        raise UserError(f"replay is {config.replay}: must be in [0, 1), a share of the epoch's rows")
    runs = [RunFolder(Path(each["run"])) for each in ancestors(config)]
    stored = [resuming.stored_in(run) for run in runs if run.config.is_file()]
    if not stored:
        raise UserError(f"replay is {config.replay}: needs init_from=RUN, whose training rows are learned again")
    config = config.copy()
    old = {str(entry["path"]): entry for each in stored for entry in _entries(each.data)}
    shared = [{**entry, "share": config.replay / len(old)} for entry in old.values()]
    config.data.train = [*_listed(config.data.train), *shared]
    return config


def _listed(given: Any) -> list[Any]:
    return list(given) if OmegaConf.is_list(given) else [given]


def _entries(data: DictConfig) -> list[dict[str, Any]]:
    """The sources of training rows; what was drawn from earlier runs itself is not drawn twice."""
    entries = [_entry(given, data) for given in _listed(data.train)]
    return [entry for entry in entries if "share" not in entry]


def _entry(given: Any, data: DictConfig) -> dict[str, Any]:
    """A source of an earlier run, with what its other settings say of how it is read."""
    entry = dict(OmegaConf.to_container(given)) if OmegaConf.is_config(given) else {"path": given}  # type: ignore[arg-type]
    known = {key: data.get(key) for key in ("format", "encoding") if data.get(key) is not None}
    return {**known, **{str(key): entry[key] for key in ("path", "format", "encoding", "share") if key in entry}}
