"""A search: Optuna says which values to try next, and jobs that look bad are given up early.

Optuna is asked and told directly. Its plugin for Hydra pins releases of both that no longer install together.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from glm_lightning.config import quote
from glm_lightning.config.command_line import sources
from glm_lightning.sweeps import grid
from glm_lightning.sweeps.jobs import RANKED_BY, Job
from glm_lightning.sweeps.pool import Pool
from glm_lightning.sweeps.table import report, tell_how_to_go_on
from glm_lightning.types import UserError

if TYPE_CHECKING:
    import optuna

STUDY = "study.db"
"""The study in SQLite: `optuna-dashboard` and Optuna's own functions read it."""

Space = dict[str, "list[Any] | dict[str, Any]"]
"""Dotted keys, each with a list of choices or ``{low, high, log, step}``."""


@final
class Search:
    """The ``sweep`` node of a search, which minimises the validation loss.

    Args:
        space: what is varied, by key: a list of choices, or a range ``{low: 1e-5, high: 1e-2, log: true}`` of whole
            numbers if both ends are whole (then with a ``step`` where wanted). Keys may be nested or dotted.
        trials: jobs in all, those of an earlier start counted in.
        jobs: how many run at once.
        retry: a search that goes on runs its failed trials again.
        seed: of the choices.
        startup: trials drawn at random before the first choice, and finished before the first is given up.
        prune: give up a trial whose best validation loss so far is above the median of the others' so far on their way.
    """

    def __init__(
        self,
        *,
        space: dict[str, Any],
        trials: int = 20,
        jobs: int = 1,
        retry: bool = False,
        seed: int = 1,
        startup: int = 6,
        prune: bool = True,
    ) -> None:
        numbers = {"trials": trials, "jobs": jobs, "startup": startup}
        problems = [f"sweep.{key} is {value}: must be 1 or more" for key, value in numbers.items() if value < 1]
        self.space: Space = dict(_flat(space))
        problems += [problem for key, each in self.space.items() if (problem := _problem(key, each))]
        if not self.space:
            problems.append(
                "sweep.space is empty: must name at least one key, as in +sweep.space.optimizer.lr=[1e-4,1e-3]"
            )
        if importlib.util.find_spec("optuna") is None:
            problems.append("sweep: a search needs Optuna: pip install 'glm-lightning[optuna]'")
        if problems:
            raise UserError(problems)
        self.trials, self.jobs, self.retry, self.seed = trials, jobs, retry, seed
        self.startup, self.prune = startup, prune


def is_search(config: DictConfig) -> bool:
    """Whether the ``sweep`` node of a composed configuration is a search."""
    node = config.get("sweep")
    return node is not None and str(node.get("_target_", "")).rpartition(".")[2] == Search.__name__


def search(config: DictConfig) -> float:
    """Run the search of ``config`` to its end, or go on with the one in its folder; the best validation loss.

    Raises:
        SystemExit: Ctrl-C, after jobs were stopped and the table printed; or no trial has succeeded.
    """
    hydra = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:
        raise UserError(
            "-m with a search: it starts its jobs itself; leave -m out, and name what varies in sweep.space"
        )
    settings: Search = grid.of(config)
    folder = Path(hydra.sweep.dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    grid.keep_command_line(folder)
    fixed = [*sources(grid.command_line(folder)), *grid.own(hydra.overrides.task)]
    pool = Pool(folder, size=settings.jobs)
    try:
        _Trials(settings, pool, fixed).run()
    except KeyboardInterrupt:
        grid.stop(pool)
    pool.close()
    jobs = report(folder)
    if any(job.status in ("killed", "stopped") for job in jobs):
        tell_how_to_go_on(folder, grid.command_line(folder))
    best = min((job.score for job in jobs if not math.isnan(job.score)), default=None)
    if best is None:
        raise SystemExit(1)
    return best


@final
class _Trials:
    """The trials of a study, and the jobs that run them; a job has its trial's number."""

    def __init__(self, settings: Search, pool: Pool, fixed: Sequence[str]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._settings, self._pool, self._fixed = settings, pool, fixed
        self._study = _study(settings, pool.folder)
        self._running: dict[int, tuple[optuna.Trial, Path, int]] = {}  # with the lines of metrics read so far
        self._again: list[optuna.Trial] = []

    def run(self) -> None:
        """Ask, start, watch, tell, until all trials have ended."""
        from optuna import Trial
        from optuna.trial import TrialState

        before = self._study.get_trials(deepcopy=False)
        counted = [trial for trial in before if not (self._settings.retry and trial.state is TrialState.FAIL)]
        # trials that an interrupted search has left go on where they stopped
        for trial in before:
            if trial.state is TrialState.RUNNING:
                self._start_when_free(Trial(self._study, trial._trial_id))
        for _ in range(self._settings.trials - len(counted)):
            self._start_when_free(self._study.ask())
        self._watch(below=1)

    def _start_when_free(self, trial: optuna.Trial) -> None:
        self._watch(below=self._settings.jobs)
        values = {key: _suggested(trial, key, each) for key, each in self._settings.space.items()}
        swept = [quote(f"{key}={_text(value)}", multirun=False) for key, value in values.items()]
        path = self._pool.start(trial.number, swept, [*self._fixed, *swept])
        self._running[trial.number] = (trial, path, 0)

    def _watch(self, *, below: int) -> None:
        """Report what running jobs have measured, until fewer than ``below`` run."""
        while True:
            for job in self._pool.ended():
                self._tell(job)
            for number in list(self._running):
                self._report(number)
            if len(self._running) < below:
                return
            self._pool.pause()

    def _report(self, number: int) -> None:
        trial, path, read = self._running[number]
        losses = list(validations(path))
        # by its number: runs with other batches validate at other steps, and as far on their way
        for count, (step, loss) in enumerate(losses[read:], start=read + 1):
            trial.report(loss, count)
            if self._settings.prune and trial.should_prune():
                self._pool.prune(number, f"at step {step} its validation loss of {loss:.4g} was above the median")
                break
        self._running[number] = (trial, path, len(losses))

    def _tell(self, job: Job) -> None:
        from optuna.trial import TrialState

        trial, *_ = self._running.pop(job.number)
        if job.status == "done" and not math.isnan(job.score):
            self._study.tell(trial, job.score)
        elif job.status != "killed":  # else it stays a running one, which the search goes on with when started again
            self._study.tell(trial, state=TrialState.PRUNED if job.status == "pruned" else TrialState.FAIL)


def validations(run: Path) -> Iterator[tuple[int, float]]:
    """Step and validation loss of each validation that a run has written so far; a line that is being written waits."""
    file = run / "metrics.jsonl"
    for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else []:
        row = json.loads(line) if line.endswith(b"\n") else {}
        if RANKED_BY in row and row.get("step") is not None and math.isfinite(row[RANKED_BY]):
            yield int(row["step"]), float(row[RANKED_BY])


def _study(settings: Search, folder: Path) -> optuna.Study:
    import optuna

    done = 0
    storage = f"sqlite:///{folder / STUDY}"
    if (folder / STUDY).is_file():
        done = len(optuna.load_study(study_name="sweep", storage=storage).get_trials(deepcopy=False))
    return optuna.create_study(
        study_name="sweep",
        storage=storage,
        load_if_exists=True,
        # a study that goes on must not draw the same values again
        sampler=optuna.samplers.TPESampler(seed=settings.seed + done, n_startup_trials=settings.startup),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=settings.startup)
        if settings.prune
        else optuna.pruners.NopPruner(),
    )


def _suggested(trial: optuna.Trial, key: str, each: list[Any] | dict[str, Any]) -> Any:
    if isinstance(each, list):
        return trial.suggest_categorical(key, each)
    low, high, log, step = each["low"], each["high"], bool(each.get("log", False)), each.get("step")
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, log=log, step=step or 1)
    return float(f"{trial.suggest_float(key, low, high, log=log, step=step):.6g}")


def _text(value: Any) -> str:
    """A value as an override says it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flat(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in space.items():
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", dict(value) if isinstance(value, Mapping) else value


def _problem(key: str, each: Any) -> str | None:
    place = f"sweep.space.{key} is {each}"
    if isinstance(each, list):
        return None if each else f"{place}: must name at least one value"
    if not isinstance(each, dict):
        return f"{place}: must be a list of choices, or a range as {{low: 1e-5, high: 1e-2, log: true}}"
    if unknown := sorted(each.keys() - {"low", "high", "log", "step"}):
        return f"{place}: a range has low, high, log and step, and no {', '.join(unknown)}"
    numbers = [each.get("low"), each.get("high")]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return f"{place}: low and high must be numbers"
    if each["low"] >= each["high"]:
        return f"{place}: low must be below high"
    if each.get("log") and (each["low"] <= 0 or each.get("step")):
        return f"{place}: a logarithmic range must be above 0 and has no step"
    return None
