"""Who has started this process: the user, Lightning, or torchrun or SLURM as one of several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, cast

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig

from glm_lightning.config import command
from glm_lightning.types import UserError

T = TypeVar("T")


class Launch(NamedTuple):
    """What torchrun or SLURM says of a process that it has started."""

    by: str
    world_size: int
    num_nodes: int
    per_node: int | None  # processes of each; None: it does not say
    restarts: int  # how often it has started the same run anew


def launch() -> Launch | None:
    """How this process was started as one of several; None if nobody but Lightning has to do with it."""
    env = os.environ
    if TorchElasticEnvironment.detect():
        per_node = int(env["LOCAL_WORLD_SIZE"])
        restarts, size = int(env.get("TORCHELASTIC_RESTART_COUNT", 0)), int(env["WORLD_SIZE"])
        return Launch("torchrun", size, size // per_node, per_node, restarts)
    if SLURMEnvironment.detect():
        tasks = env.get("SLURM_NTASKS_PER_NODE")
        restarts, size = int(env.get("SLURM_RESTART_COUNT", 0)), int(env["SLURM_NTASKS"])
        return Launch("SLURM", size, int(env.get("SLURM_NNODES", 1)), None if tasks is None else int(tasks), restarts)
    return None


def num_nodes(config: DictConfig) -> int:
    """``trainer.num_nodes``; ``auto`` is what has been started."""
    given = config.trainer.num_nodes
    found = launch()
    return (1 if found is None else found.num_nodes) if given == "auto" else int(given)


def problems(config: DictConfig) -> Iterator[str]:
    """Numbers of machines and processes that are not those that have been started."""
    found, nodes, devices = launch(), config.trainer.num_nodes, config.trainer.devices
    if found is None:
        if nodes not in ("auto", 1):
            yield f"trainer.num_nodes is {nodes}: nobody has started this on other machines. {_how(nodes, devices)}"
        return
    if nodes not in ("auto", found.num_nodes):
        yield f"trainer.num_nodes is {nodes}: {found.by} has started {found.num_nodes}; use trainer.num_nodes=auto"
    if isinstance(devices, int) and devices > 0 and found.per_node not in (None, devices):
        yield (
            f"trainer.devices is {devices}: {found.by} has started {found.per_node} process(es) a machine; "
            f"use trainer.devices={found.per_node}"
        )


def _how(nodes: int, devices: Any) -> str:
    each = devices if isinstance(devices, int) and devices > 0 else "GPUS"
    program = command().removeprefix("python ") if command().startswith("python ") else f"--no-python {command()}"
    return (
        f"On each of them: torchrun --nnodes={nodes} --nproc-per-node={each} --rdzv-backend=c10d --rdzv-id=1 "
        f"--rdzv-endpoint=FIRST_MACHINE:29500 {program} ... run_dir=SHARED_FOLDER; "
        f"under SLURM: srun --nodes={nodes} --ntasks-per-node={each} {command()} ... run_dir=SHARED_FOLDER"
    )


def check(trainer: pl.Trainer) -> None:
    """Raise `UserError` if other processes have been started than the trainer counts on: rows would be lost."""
    counted = trainer.num_devices * trainer.num_nodes
    if launch() is not None and trainer.world_size != counted:
        raise UserError(
            f"trainer.devices: {trainer.num_devices} device(s) on {trainer.num_nodes} machine(s) are {counted} "
            f"process(es), but {trainer.world_size} have been started; start one for each device"
        )


def of_first(trainer: pl.Trainer, decide: Callable[[], T]) -> T:
    """What the first rank decides, for all; a `UserError` of its is raised by all.

    Ranks that Lightning starts come later, and find what the first has done; torchrun's and SLURM's run side by side.
    """
    environment: Any = trainer._accelerator_connector.cluster_environment
    if trainer.world_size == 1 or isinstance(environment, LightningEnvironment):
        return decide()
    trainer.strategy.setup_environment()
    outcome, refused = None, None
    if trainer.is_global_zero:
        try:
            outcome = decide()
        except UserError as error:
            refused = error.problems
    outcome, refused = trainer.strategy.broadcast((outcome, refused))
    if refused is not None:
        raise UserError(refused)
    return cast(T, outcome)


def agree(trainer: pl.Trainer, **facts: str) -> None:
    """Raise `UserError` if the ranks, which may run on machines with other files, do not have the same ``facts``."""
    if not dist.is_initialized():
        return
    of_ranks: list[dict[str, str]] = [{}] * trainer.world_size
    dist.all_gather_object(of_ranks, facts)
    differing = [
        f"{name} differs between ranks 0 and {rank}: {of_ranks[0][name]} and {theirs[name]}; "
        "give all machines the same files and the same release"
        for name in facts
        for rank, theirs in enumerate(of_ranks)
        if theirs[name] != of_ranks[0][name]
    ]
    if differing:
        raise UserError(differing)
