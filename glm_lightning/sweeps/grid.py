"""A sweep that Hydra enumerates: every combination of the values given, one job for each."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from glm_lightning.config import check, made
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

_OWN = ("sweep", "hydra")


@final
class Grid:
    """How the jobs of a sweep are run: the ``sweep`` node of the configuration.

    Args:
        jobs: how many run at once.
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
    before = settled(number, swept, folder, retry=settings.retry)
    if before is not None:
        record(before, folder)
        print(f"job {number}: {before.status} before ({' '.join(swept)})", flush=True)
        return before.score
    _pool = _pool or Pool(folder, size=settings.jobs)
    try:
        _pool.wait(below=settings.jobs)
        _pool.start(number, swept, [*sources(argv), *overrides])
        ended = _pool.wait(below=1) if settings.jobs == 1 else []
    except KeyboardInterrupt:
        stop(_pool)
    return ended[0].score if ended else math.nan


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
    report(pool.folder)
    tell_how_to_go_on(pool.folder, command_line(pool.folder))
    sys.exit(INTERRUPTED)


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


@final
class Report(Callback):
    """Hydra's callback around a sweep: only Hydra knows which job is the last."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Keep the command line."""
        keep_command_line(Path(config.hydra.sweep.dir).absolute())

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Wait for the jobs that still run; print and write the table.

        Raises:
            SystemExit: exit code 1 where no job has succeeded. One that has makes the sweep a success.
        """
        folder = Path(config.hydra.sweep.dir).absolute()
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
