"""What a run leaves behind for others: weights in a standard format, tokenizer, template, and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from glm_lightning.files import atomic_folder, write_json, write_text
from glm_lightning.methods.base import Method
from glm_lightning.models.source import DEMO
from glm_lightning.runs import RunFolder
from glm_lightning.runs.folder import environment
from glm_lightning.strategies.parts import gathered, is_part
from glm_lightning.training import starting
from glm_lightning.training.console import knobs
from glm_lightning.training.parts import Parts


def put_together(method: Method) -> None:
    """Where weights are sharded: the first rank gets a network with all that was trained, the others none."""
    trained, notices = method.trained(), [*method.notices]
    if not any(is_part(p) for p in trained.values()):
        return
    is_first = method.trainer.is_global_zero
    values = gathered(trained, keep=is_first)
    method.network = None
    if is_first:
        method.configure_model()
        method.take(values)
    method.notices = notices  # the network's have been told


def leave_artefact(config: DictConfig, folder: RunFolder, parts: Parts, report: dict[str, Any]) -> None:
    """Write the adapter or model folder of a finished run, whole or not at all."""
    source, method = parts.source, parts.method
    with atomic_folder(folder.artefact(method.artefact)) as part:
        method.save(part)
        parts.tokenizer.save(part)
        belongs_to = {
            "base": str(Path(source.path).absolute()) if source.is_folder and source.path != DEMO else source.path,
            "hub": source.hub,
            "revision": source.revision,
            "num_layers": source.num_layers,
            "layers": source.layers,
            "quantize": source.quantize,
            "double_quantize": source.double_quantize,
            "name_prefix": source.name_prefix,
            "fingerprint": source.fingerprint,
            "template": parts.template.name,
        }
        write_json(part / "glm_lightning.json", belongs_to)
        write_text(part / "README.md", card(config, report, artefact=method.artefact))


def card(config: DictConfig, report: dict[str, Any], *, artefact: str) -> str:
    """The model card: what this is, what made it, what it scored."""
    made_with = environment()
    method = config.method._target_.rpartition(".")[2]
    scores = [
        f"| {name} | {report['before'].get(name, float('nan')):.4f} | {value:.4f} |"
        for name, value in report["metrics"].items()
    ]
    settings = {
        "base model": config.model.path,
        "method": f"{method} {knobs(config.method)}",
        "optimizer": knobs(config.optimizer),
        "schedule": f"{config.scheduler._target_.rpartition('.')[2]} {knobs(config.scheduler)}",
        "rows an optimizer step": config.data.batch_size,
        "optimizer steps": report["steps"],
        "trained parameters": f"{report['trained_parameters']:,}",
        "seed": config.seed,
    }
    return "\n".join([
        "---",
        f"base_model: {config.model.path}",
        f"library_name: {'peft' if artefact == 'adapter' else 'transformers'}",
        "pipeline_tag: text-generation",
        "tags: [glm, glm-lightning]",
        "---",
        "",
        f"# {config.name or folder_name(config)}",
        "",
        f"Fine-tuned from `{config.model.path}` with glm_lightning {made_with['packages']['glm-lightning']}.",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in settings.items()),
        "",
        "| score | base | fine-tuned |",
        "| --- | ---: | ---: |",
        *scores,
        "",
        *_trained_before(config),
        f"Made on {made_with['date']} with "
        + ", ".join(f"{name} {version}" for name, version in made_with["packages"].items())
        + f", Python {made_with['python']}, by `{made_with['command']}`.",
        "",
    ])  # fmt: skip


def _trained_before(config: DictConfig) -> list[str]:
    before = starting.ancestors(config)
    if not before:
        return []
    rows = [
        f"| {each['run'].rpartition('/')[2]} | {each.get('method')} | {each.get('steps')} | "
        f"{each.get('metrics', {}).get('val/loss', float('nan')):.4f} |"
        for each in before
    ]
    return ["| trained before in | method | steps | validation loss |", "| --- | --- | ---: | ---: |", *rows, ""]


def folder_name(config: DictConfig) -> str:
    """The last part of the run folder's path."""
    return str(config.run_dir).rstrip("/").rpartition("/")[2]
