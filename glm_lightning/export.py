"""Hand on what was trained: an adapter folder, or a whole model that other programs load."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from rich.console import Console
from torch import Tensor

from glm_lightning.files import atomic_folder, write_json, write_text
from glm_lightning.inference.loading import GLM, Found, load, resolve
from glm_lightning.models import Source, families, prefix
from glm_lightning.models.source import WeightsDtype
from glm_lightning.types import UserError

if TYPE_CHECKING:
    from glm_lightning.methods.merging import Merged

Layout = Literal["native", "official"]

PROBES = ("你好，请介绍一下你自己。", "Write a short advertisement for a red cotton dress.")
"""What is asked to measure how much merging changes the logits."""


@dataclass(frozen=True)
class Exported:
    """A written folder, and what is to be said about it."""

    folder: Path
    notice: str


def export_adapter(source: str | Path, out: Path) -> Exported:
    """Copy the adapter of a run, which stock PEFT loads where it knows the method.

    Raises:
        UserError: there is none, or ``out`` exists.
    """
    found = resolve(source)
    _refuse_existing(out)
    if found.adapter is None:
        raise UserError(f"{source}: holds a whole model and no adapter; export it without --adapter")
    with atomic_folder(out) as part:
        shutil.copytree(found.adapter, part, dirs_exist_ok=True)
    return Exported(out, "the adapter as it was trained")


def export_model(source: str | Path, out: Path, *, layout: Layout = "native", dtype: WeightsDtype = "auto") -> Exported:
    """Write a whole model with what was learned folded into its weights.

    Args:
        source: a run, an adapter folder, a model folder or a name on the hub.
        out: the folder to write; must not exist.
        layout: ``native`` is transformers' own, ``official`` that of the early generations' releases.
        dtype: the type of the written weights; ``auto`` is the base's.

    Raises:
        UserError: ``out`` exists, what was learned is no change of weights, or the network has no official layout.
    """
    found = resolve(source)
    _refuse_existing(out)
    if layout == "official" and found.base.generation is None:
        raise UserError(
            f"--layout official: {found.base.path} is in transformers' own layout and is no early generation loaded "
            "from its official folder; leave --layout out"
        )
    if found.adapter is not None and prefix.is_prefix(found.adapter):
        raise UserError(
            f"{source}: a prefix of P-tuning v2 stands in front of the text and cannot be folded into weights; "
            "export it with --adapter"
        )
    stored = cast(WeightsDtype, str(found.base.stored_dtype).removeprefix("torch."))
    glm = load(source, dtype=stored if dtype == "auto" else dtype, quantize="none", device="cpu")
    merged = _merged(found, glm)
    with atomic_folder(out) as part:
        _write(glm, found.base, part, layout=layout)
        write_json(part / "glm_lightning.json", {"template": glm.template.name})
        write_text(part / "README.md", _card(found, merged))
    return Exported(out, merged.told if merged is not None else "the model as it is")


def default_folder(source: str | Path) -> Path:
    """A folder here, called as the source; with the beginning that the base's licence wants (GLM-4-9B: ``glm-4-``)."""
    prefix_of_name, name = resolve(source).base.name_prefix, Path(source).name
    return Path(name if name.startswith(prefix_of_name) else prefix_of_name + name)


def _merged(found: Found, glm: GLM) -> Merged | None:
    if found.adapter is None:
        return None
    # peft takes seconds to import, and complains while it does unless `load` has come first
    from glm_lightning.methods.merging import merge

    probe = _probe(glm)
    trained = None
    if found.base.quantize is not None:
        trained = load(found.adapter, device="cpu").model
    merged = merge(glm.model, probe, trained=trained)
    glm.model = merged.network
    return merged


def _probe(glm: GLM) -> Tensor:
    """The prompts of `PROBES`, each followed by itself, cut to one length. Shape (B, T)."""
    prompts = [glm.prompt([{"role": "user", "content": text}]) for text in PROBES]
    return torch.tensor([prompt[: min(map(len, prompts))] for prompt in prompts])


def _write(glm: GLM, base: Source, folder: Path, *, layout: Layout) -> None:
    network: Any = glm.model
    network.generation_config.eos_token_id = glm.stop_ids
    network.generation_config.pad_token_id = glm.tokenizer.pad_id
    if layout == "native":
        network.save_pretrained(folder)
        glm.tokenizer.save(folder)
        return
    families.layout(base.raw_config).save(network, folder, original=base.raw_config)
    glm.tokenizer.save_official(folder)
    if base.is_folder:
        # The official code, for the tools that run it; it is never run here.
        for file in Path(base.location).glob("*.py"):
            shutil.copy(file, folder)


def _card(found: Found, merged: Merged | None) -> str:
    """The card of what was trained, if there is one, and what merging changed."""
    trained = (found.adapter or Path(found.base.location)) / "README.md"
    text = trained.read_text(encoding="utf-8") if trained.is_file() else f"# {Path(found.base.path).name}\n"
    text = text.replace("library_name: peft", "library_name: transformers")
    return text + (f"\nThe adapter is {merged.told}.\n" if merged is not None else "")


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out}: exists already; an export never overwrites, give another folder")


def main(argv: Sequence[str]) -> None:
    """Export a run from the command line."""
    parser = argparse.ArgumentParser(
        prog="glm export", description="Write what was trained as a whole model (the default) or as an adapter."
    )
    parser.add_argument("source", help="run folder, adapter folder, model folder or hub name")
    parser.add_argument(
        "out", type=Path, nargs="?", help="the folder to write; must not exist (default: named as the source, here)"
    )
    parser.add_argument("--adapter", action="store_true", help="the adapter alone, in PEFT's format")
    parser.add_argument(
        "--layout",
        choices=["native", "official"],
        default="native",
        help="native (default): transformers' own; official: that of ChatGLM-6B, 2, 3 and GLM-4-9B as released",
    )
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="default: the base's"
    )
    options = parser.parse_args(argv)
    out = options.out or default_folder(options.source)
    if options.adapter:
        exported = export_adapter(options.source, out)
    else:
        exported = export_model(options.source, out, layout=options.layout, dtype=options.dtype)
    Console(highlight=False).print(f"{exported.folder}: {exported.notice}")
