"""``glm plan``: memory and time of a run under every method, before anything is loaded."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from glm_lightning import config as configuration
from glm_lightning.config import command, conf_dir, made
from glm_lightning.estimate import devices
from glm_lightning.estimate.devices import Device
from glm_lightning.estimate.speed import measured_rate
from glm_lightning.inference.asking import progress_bar
from glm_lightning.models import Source, precision, releases
from glm_lightning.models.quiet import quiet
from glm_lightning.models.source import DEMO
from glm_lightning.objectives.base import Objective
from glm_lightning.objectives.sft import SFT
from glm_lightning.planning import table
from glm_lightning.planning.row import Question, Row, row
from glm_lightning.training.expected import Work, loaded_data


class _Job(NamedTuple):
    """What is configured, for one of the methods."""

    config: DictConfig
    source: Source
    objective: Objective


def main(argv: Sequence[str]) -> None:
    """Print what every method takes on a device."""
    options = _parser().parse_intermixed_args(argv)
    quiet()
    console = Console(soft_wrap=False)
    device = _device(options)
    first = _job(options.settings)
    precision_name, work = _precision(first, device, options), _work(first)
    question = Question(
        work=work,
        precision=precision_name,
        device=device,
        num_devices=_num_devices(first.config),
        rate=_rate(first, device, precision_name, options),
    )
    rows = _rows(options, question)
    if options.json:
        print(json.dumps({"device": device.name, "methods": [table.plain(each) for each in rows]}, indent=2))
        return
    _tell(first, question, rows, options.settings, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glm plan",
        description="What a run takes in memory and time under every method, and what fits; nothing is loaded. Give "
        "the arguments of a run, as for train.py. Without data, micro-batches are as full as data.max_tokens allows, "
        "with rows of data.max_length of which half is learned.",
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="as for train.py: model=glm_4_9b_chat")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--device", metavar="NAME", help="a GPU: " + ", ".join(each.name for each in devices.DEVICES))
    where.add_argument("--memory", metavar="SIZE", help="any GPU with so much memory: 24GB")
    parser.add_argument("--methods", metavar="A,B", help="these methods only (default: all of conf/method/)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def _device(options: argparse.Namespace) -> Device:
    if options.device is not None:
        return devices.find(options.device)
    if options.memory is not None:
        return devices.of_memory(options.memory)
    return devices.here(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _job(settings: Sequence[str], method: str | None = None) -> _Job:
    """What ``settings`` configure; with another method, what they say of their own one is left out."""
    if method is not None:
        settings = [each for each in settings if not each.lstrip("+~").startswith(("method=", "method."))]
        settings = [*settings, f"method={method}"]
    config = configuration.compose(settings)
    if not _has_data(config, settings):
        config = configuration.compose([*settings, "data=auto"])
    source: Source = instantiate(config.model)
    if OmegaConf.is_missing(config.data, "train") and not source.is_folder and releases.name_of(source.path):
        source = releases.published(source)
    return _Job(config, source, made(config.objective, "objective"))


def _rows(options: argparse.Namespace, question: Question) -> list[Row]:
    own = _own_method(options.settings)
    names = (
        options.methods.split(",")
        if options.methods
        else sorted(each.stem for each in conf_dir().glob("method/*.yaml"))
    )
    rows = []
    with progress_bar("planning", len(names)) as advance:
        for name in names:
            job = _job(options.settings, None if name == own else name)
            rows.append(row(name, job.config, job.source, job.objective, question))
            advance(len(rows))
    return rows


def _own_method(settings: Sequence[str]) -> str:
    """The method that ``settings`` choose, whose own knobs they may say, too."""
    chosen = [each.partition("=")[2] for each in settings if each.startswith("method=")]
    return chosen[-1] if chosen else "lora"


def _work(job: _Job) -> Work:
    config = job.config
    if OmegaConf.is_missing(config.data, "train"):
        return Work.full(config.data)
    data, plan = loaded_data(config, job.source, job.objective, num_devices=_num_devices(config))
    return Work.of(config, data, plan)


def _has_data(config: DictConfig, settings: Sequence[str]) -> bool:
    """Whether it is said how rows are read, or the embedded model comes with its own."""
    keys = {each.partition("=")[0].lstrip("+") for each in settings}
    return config.model.path == DEMO or bool(keys & {"data", "data.train", "experiment"})


def _num_devices(config: DictConfig) -> int:
    devices_, nodes = config.trainer.devices, config.trainer.num_nodes
    return (devices_ if isinstance(devices_, int) and devices_ > 0 else 1) * (nodes if isinstance(nodes, int) else 1)


def _precision(job: _Job, device: Device, options: argparse.Namespace) -> str:
    asked = str(job.config.trainer.precision)
    if asked == "auto" and (options.device or options.memory):
        return "16-mixed" if device.kernels == "cuda_math" else "bf16-mixed"
    kind = "cpu" if device.kernels == "cpu" else "cuda"
    return precision.choose(asked, device=kind, num_parameters=job.source.num_parameters).name


def _rate(job: _Job, device: Device, chosen: str, options: argparse.Namespace) -> float | None:
    if options.device or options.memory:
        return None if device.rate is None else device.rate * devices.UTILISATION
    kind = "cpu" if device.kernels == "cpu" else "cuda"
    return measured_rate(job.source, SFT().loss, precision=chosen, device=kind)


def _tell(job: _Job, question: Question, rows: Sequence[Row], settings: Sequence[str], console: Console) -> None:
    source, work, device = job.source, question.work, question.device
    shape = work.largest
    console.print(
        f"{source.path} ({source.config.model_type}, {source.num_parameters:,} parameters) in {question.precision} on "
        f"{question.num_devices} x {device.name}, {devices.shown(device.size)}",
        highlight=False,
    )
    console.print(
        f"largest micro-batch: {shape.rows} x {shape.length} positions, {shape.supervised:,} learned; longest row "
        f"{work.longest}",
        highlight=False,
    )
    console.print(table.table(rows, per="an epoch" if work.known else "1M tokens"))
    for each in rows:
        if each.refused is not None:
            console.print(f"{each.method}: {each.refused}", style="dim", highlight=False, markup=False)
    best = table.recommended(rows)
    if best is None:
        console.print(
            "Nothing fits. Take shorter rows (data.max_length), several devices (trainer=fsdp trainer.devices=N), or a "
            "smaller model."
        )
        return
    console.print(table.reason(best, rows), highlight=False)
    chosen = table.settings(
        best,
        longest=work.longest,
        max_tokens=job.config.data.max_tokens,
        checkpointing=job.source.gradient_checkpointing,
    )
    own = [
        each for each in settings if not each.startswith(("method=", "method.")) or best.method == _own_method(settings)
    ]
    said = [shlex.quote(each) for each in dict.fromkeys([*own, *chosen])]
    console.print(f"  {command()} {' '.join(said)}", highlight=False, soft_wrap=True)
