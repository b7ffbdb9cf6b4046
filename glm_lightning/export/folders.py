"""Hand on what was trained: an adapter folder, or a whole model that other programs load."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glm_lightning.data.progress import Bar
from glm_lightning.export import description
from glm_lightning.export.merging import Layout, Merging, Wanted
from glm_lightning.export.walking import Probe
from glm_lightning.export.writing import DEFAULT_SHARD, check_room
from glm_lightning.files import atomic_folder
from glm_lightning.inference import adapters
from glm_lightning.inference.loading import Found, resolve, words
from glm_lightning.inference.messages import conversation
from glm_lightning.inference.prompts import prompt_ids
from glm_lightning.methods import quantized
from glm_lightning.models import Source, families, prefix
from glm_lightning.models.quantization import Quantize
from glm_lightning.models.quiet import quiet
from glm_lightning.models.source import WeightsDtype
from glm_lightning.runs import RunFolder
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError

PROBES = ("你好，请介绍一下你自己。", "Write a short advertisement for a red cotton dress.")
"""What is asked to measure what an export changes, beside questions of the run's own test rows."""


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
    _, template = words(found.base, found.files)
    with _new_folder(out) as part:
        shutil.copytree(found.adapter, part, dirs_exist_ok=True)
        description.write_chat_template(template, part)
    return Exported(out, "the adapter as it was trained")


def export_model(
    source: str | Path,
    out: Path,
    *,
    layout: Layout = "native",
    dtype: WeightsDtype = "auto",
    quantize: Quantize | None = None,
    blend: float = 1.0,
    shard_size: float = DEFAULT_SHARD,
) -> Exported:
    """Write a whole model with what was learned folded into its weights.

    The network goes through memory part by part, so that it may be larger than that.

    Args:
        source: a run, an adapter folder, a model folder or a name on the hub.
        out: the folder to write; must not exist.
        layout: ``native`` is transformers' own, ``official`` that of the early generations' releases.
        dtype: the type of the written weights; ``auto`` is that which they are stored in.
        quantize: hold the linear layers in ``nf4`` or ``int8`` (bitsandbytes).
        blend: how far to go from the base (0) to what was trained (1).
        shard_size: largest size of a file in bytes; as much is held in memory.

    Raises:
        UserError: ``out`` exists or its disk is full, what was learned is no change of weights, or the options do not
            go with the network.
    """
    quiet()
    _refuse_existing(out)
    found = resolve(source)
    wanted = Wanted(layout, dtype, quantize, blend, shard_size)
    origin = _origin(found)
    if problems := list(_problems(found, origin, wanted)):
        raise UserError([f"{source}: {problem}" for problem in problems])
    tokenizer, template = words(found.base, found.files)
    merging = Merging(found.base, found.adapter, wanted, origin=origin)
    check_room(out, needed=merging.num_bytes)
    with _new_folder(out) as part, Bar("exporting", total=len(merging.weights.parts)) as bar:
        measured = merging.write(part, _probe(found, tokenizer, template), progress=bar.show)
        notice = description.told(merging, measured)
        description.write_config(merging, part)
        description.write_generation_config(merging, part, tokenizer=tokenizer, template=template)
        description.write_words(merging, part, tokenizer=tokenizer, template=template)
        description.write_card(merging, part, trained=found.adapter or Path(found.base.location), told=notice)
    return Exported(out, notice)


def default_folder(source: str | Path) -> Path:
    """A folder here, called as the source; with the beginning that the base's licence wants (GLM-4-9B: ``glm-4-``)."""
    prefix_of_name, name = resolve(source).base.name_prefix, Path(source).name
    return Path(name if name.startswith(prefix_of_name) else prefix_of_name + name)


def _origin(found: Found) -> Source:
    """What was trained: the base of an adapter, or of a model that was trained as a whole, if it is known."""
    about = Path(found.base.location) / adapters.ABOUT
    if found.adapter is not None or not about.is_file():
        return found.base
    said = adapters.about(about.parent)
    if "base" not in said:
        return found.base
    return Source(path=said["base"], **{key: said[key] for key in ("hub", "revision") if said.get(key)})


def _problems(found: Found, origin: Source, wanted: Wanted) -> Iterator[str]:
    if wanted.layout == "official" and families.layout(origin.raw_config) is None:
        yield (
            f"--layout official: {origin.path} is in transformers' own layout and is no early generation in its "
            "official one; leave --layout out"
        )
    if wanted.layout == "official" and wanted.quantize is not None:
        yield "--layout official: that layout has no place for bitsandbytes' weights; leave --quantize out"
    if "quantization_config" in found.base.raw_config:
        yield f"{found.base.path} holds quantised weights already; give the full-precision ones"
    elif wanted.quantize is not None:
        yield from (problem for problem in quantized.problems(found.base.skeleton, wanted.quantize))
    if not 0 < wanted.blend <= 1:
        yield f"--blend is {wanted.blend:g}: must be above 0 (the base) and at most 1 (what was trained)"
    if wanted.blend != 1 and found.adapter is None and origin is found.base:
        yield f"--blend {wanted.blend:g}: what {found.base.path} was trained from is not known; give a run"
    if found.adapter is not None and (what := _in_front(found.adapter)):
        yield f"{what} stands in front of the text and cannot be folded into weights; export it with --adapter"


def _in_front(adapter: Path) -> str | None:
    """What is learned in front of the text, if that is what the adapter is."""
    if prefix.is_prefix(adapter):
        return "a prefix of P-tuning v2"
    kind = str(adapters.about(adapter, adapters.PEFT).get("peft_type"))
    return "a soft prompt" if "PROMPT" in kind or kind in ("P_TUNING", "PREFIX_TUNING", "CARTRIDGE") else None


def _probe(found: Found, tokenizer: Tokenizer, template: Template) -> Probe:
    """`PROBES`, and questions that the run was tested with."""
    questions = [*PROBES, *_tested(found)]
    prompts = [template.prompt(conversation([{"role": "user", "content": text}])) for text in questions]
    return Probe.of(prompt_ids(prompts, tokenizer), pad_id=tokenizer.pad_id)


def _tested(found: Found, count: int = 2) -> list[str]:
    answers = RunFolder(Path(found.files).parent).answers
    if not answers.is_file():
        return []
    with answers.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [row["prompt"] for row in rows if isinstance(row.get("prompt"), str)]


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes ``out``, unless another export does so meanwhile: that one's is left as it is."""
    try:
        with atomic_folder(out, replace=False) as part:
            yield part
    except FileExistsError as error:
        raise UserError(f"{error}; give another folder") from error


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out}: exists already; an export never overwrites, give another folder")
