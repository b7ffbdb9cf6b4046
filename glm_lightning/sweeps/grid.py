"""A sweep that Hydra enumerates: every combination of the values given, one job for each."""

from __future__ import annotations

import atexit
import math
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from glm_lightning.config import check, exit_on_user_error, made
from glm_lightning.config.command_line import sources
from glm_lightning.config.quoting import parsed
from glm_lightning.files import read_json, write_json
from glm_lightning.sweeps.jobs import record, settled
from glm_lightning.sweeps.pool import Pool
from glm_lightning.sweeps.table import report, tell_how_to_go_on
from glm_lightning.types import UserError

COMMAND = "command.json"
"""Holds the command line of the sweep: what a job on another machine was not started with."""

INTERRUPTED = 128 + signal.SIGINT

_OWN = ("sweep", "launcher", "hydra")


@final
class Grid:
    """How the jobs of a sweep are run: the ``sweep`` node of the configuration.

    Args:
        jobs: how many run at once, where no launcher of a cluster says so itself.
        retry: a sweep that goes on runs its failed jobs again.
    """

    def __init__(self, *, jobs: int = 1, retry: bool = False) -> None:
        if jobs < 1:
            raise UserError(f"sweep.jobs is {jobs}: must be 1 or more")
        self.jobs, self.retry = jobs, retry


_pool: Pool | None = None
"""Hydra calls `run_job` for one job after another, and `Report` behind the last: what runs is between them."""


def run_job(config: DictConfig) -> float:
    """Run the job that Hydra has composed and record its outcome in the sweep folder; for the entry point.

    Never raises for a job that fails. Returns its validation loss (NaN on failure, and where several jobs run at once).

    Raises:
        SystemExit: Ctrl-C; jobs are stopped and the table printed before.
    """
    global _pool
    settings: Grid = of(config)
    hydra = HydraConfig.get()
    folder, number = Path(hydra.sweep.dir).absolute(), int(hydra.job.num)
    argv = command_line(folder)
    overrides = own(hydra.overrides.task)
    swept = _differing(overrides, argv)
    at_once = settings.jobs if is_here(hydra) else 1
    before = settled(number, swept, folder, retry=settings.retry)
    if before is not None:
        record(before, folder)
        print(f"job {number}: {before.status} before ({' '.join(swept)})", flush=True)
        return before.score
    _pool = _pool or Pool(folder, size=at_once)
    try:
        _pool.wait(below=at_once)
        _pool.start(number, swept, [*sources(argv), *overrides])
        ended = _pool.wait(below=1) if at_once == 1 else []
    except KeyboardInterrupt:
        stop(_pool)
    return ended[0].score if ended else math.nan


def is_here(hydra: Any) -> bool:
    """Whether Hydra calls us for one job after another in this process, and no launcher elsewhere for each."""
    return str(hydra.launcher._target_).rpartition(".")[2] == "BasicLauncher"


def of(config: DictConfig) -> Any:
    """The ``sweep`` node's object, which the configuration's check has not seen yet.

    Raises:
        UserError: what is wrong with the node.
    """
    check(OmegaConf.create({"sweep": config.sweep}), provided={})
    return made(config.sweep, "sweep")


def own(overrides: Sequence[str]) -> list[str]:
    """The overrides that are a job's and not the sweep's."""
    return [each for each in overrides if each.lstrip("+~").partition("=")[0].partition(".")[0] not in _OWN]


def stop(pool: Pool) -> None:
    """End an interrupted sweep: its jobs first, then the table, and how to go on."""
    pool.stop()
    atexit.unregister(_report_what_is_left)
    _report_what_is_left(pool.folder)
    sys.exit(INTERRUPTED)


def _report_what_is_left(folder: Path) -> None:
    """The table so far, and how to go on."""
    report(folder)
    tell_how_to_go_on(folder, command_line(folder))


def keep_command_line(folder: Path) -> None:
    """Keep the command line in the sweep's folder."""
    write_json(folder / COMMAND, sys.argv[1:])


def command_line(folder: Path) -> list[str]:
    """The command line of the sweep in ``folder``, without the program's name."""
    file = folder / COMMAND
    return list(read_json(file)) if file.is_file() else sys.argv[1:]


def _differing(overrides: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Overrides of a job that the command line does not give all jobs."""
    typed = [override for argument in argv if (override := parsed(argument)) is not None]
    fixed = {override.get_key_element() for override in typed if not override.is_sweep_override()}
    return [override for override in overrides if override.partition("=")[0] not in fixed]


def _check_launcher(config: DictConfig) -> None:
    """Raise `UserError` for what a launcher would not do, or do twice."""
    launcher = config.hydra.launcher
    if is_here(config.hydra):
        return
    problems = []
    if str(config.sweep.get("_target_")).endswith("Search"):
        problems.append("launcher is given with a search: it starts its jobs itself, here; leave the launcher out")
    if str(launcher._target_).endswith("SlurmLauncher") and shutil.which("srun") is None:
        problems.append(
            "launcher is slurm: there is no srun here; start the sweep on a machine of the cluster, or try it with "
            "launcher=slurm_local"
        )
    if config.sweep.get("jobs", 1) != 1:
        problems.append(
            f"sweep.jobs is {config.sweep.jobs}: the launcher decides how many jobs run at once (slurm: "
            "hydra.launcher.array_parallelism, ray: what hydra.launcher.ray.remote takes); leave it out"
        )
    problems += [
        f"hydra.launcher.{key} is {launcher[key]}: every process would run the whole job; set it to 1, and the ranks "
        "of a job by trainer.devices"
        for key in ("nodes", "tasks_per_node")
        if launcher.get(key, 1) != 1
    ]
    if problems:
        raise UserError(problems)


@final
class Report(Callback):
    """Hydra's callback around a sweep: only Hydra knows which job is the last."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Keep the command line; should a launcher lose a job, or be interrupted, there is a table all the same.

        Raises:
            SystemExit: exit code 2 where the launcher and the sweep do not go together.
        """
        folder = Path(config.hydra.sweep.dir).absolute()
        with exit_on_user_error():
            _check_launcher(config)
        keep_command_line(folder)
        atexit.register(_report_what_is_left, folder)
        if not is_here(config.hydra):
            print(f"The launcher runs the jobs; what they print goes to {folder}/*.log", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Wait for the jobs that still run; print and write the table.

        Raises:
            SystemExit: exit code 1 where no job has succeeded. One that has makes the sweep a success.
        """
        folder = Path(config.hydra.sweep.dir).absolute()
        atexit.unregister(_report_what_is_left)
        if _pool is not None:
            try:
                _pool.wait(below=1)
            except KeyboardInterrupt:
                stop(_pool)
            _pool.close()
        jobs = report(folder)
        if any(job.status in ("killed", "stopped") for job in jobs):
            tell_how_to_go_on(folder, command_line(folder))
        if not any(job.status == "done" for job in jobs):
            sys.exit(1)
