"""The table of `glm plan`, and what it recommends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from glm_lightning.estimate.devices import GIB
from glm_lightning.planning.row import Choice, Row

ORDER = ("lora", "qlora", "ptuning_v2", "ia3", "prompt_tuning")
"""What is recommended, the first that fits: LoRA learns nearly what training everything does and leaves the base as it
is; 4 bits cost some quality and speed; the others learn less."""


def table(rows: Sequence[Row], *, per: str) -> Table:
    """A line for each method, and one for it with gradient checkpointing; sizes in GiB.

    ``per`` says what the time is for.
    """
    title = "GiB on one device (+ ckpt: with model.gradient_checkpointing=true)"
    made = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold underline")
    made.add_column("method", no_wrap=True)
    for name in ("trained", "weights", "grads", "optim", "activ", "head", "peak"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("fits", no_wrap=True)
    if any(choice.seconds is not None for each in rows for choice in each.choices):
        made.add_column(per, justify="right", no_wrap=True)
    for each in rows:
        for choice in each.choices:
            made.add_row(*_cells(each, choice), style="" if choice.works else "dim")
    return made


def _cells(row: Row, choice: Choice) -> list[str]:
    memory = choice.expected.memory
    sizes = (memory.weights + memory.beside, memory.gradients, memory.optimizer, memory.activations, memory.head)
    return [
        " + ckpt" if choice.checkpointing and len(row.choices) > 1 else row.method,
        _short(memory.trained),
        *map(_gib, sizes),
        _gib(choice.expected.peak),
        _fits(choice),
        *([] if choice.seconds is None else [duration(choice.seconds)]),
    ]


def _fits(choice: Choice) -> str:
    if choice.expected.fits:
        return "[green]yes"
    count = choice.fit.rows
    return f"[yellow]{count} row{'s' * (count > 1)}" if choice.works else "[red]no"


def _gib(size: int) -> str:
    return f"{size / GIB:.{1 if size >= 10 * GIB else 2}f}"


def _short(count: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def duration(seconds: float) -> str:
    """In the unit that suits."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{seconds:.0f} s"


def recommended(rows: Sequence[Row]) -> Row | None:
    """The first of `ORDER` that fits."""
    by_name = {each.method: each for each in rows if each.best is not None}
    return next((by_name[name] for name in ORDER if name in by_name), next(iter(by_name.values()), None))


def reason(row: Row, rows: Sequence[Row]) -> str:
    """Why it is this one, from what the others take."""
    best = row.best
    assert best is not None
    gib = best.expected.device.gib
    said = [f"{row.method}: {best.expected.peak / GIB:.1f} GiB of {gib:.0f}"]
    if best.checkpointing:
        said.append("with gradient checkpointing, about a third slower, as activations would not fit otherwise")
    if not best.expected.fits:
        said.append(f"with micro-batches of {best.fit.rows} long row(s); an optimizer step stays the same")
    for other in rows:
        if other.method == "full" and other.best is not None and other is not row:
            said.append(
                f"full would fit, too ({other.best.expected.peak / GIB:.1f} GiB): it learns most and forgets most"
            )
        if other.method in ORDER[: ORDER.index(row.method) if row.method in ORDER else 0] and other.choices:
            least = min(choice.expected.peak for choice in other.choices)
            said.append(f"{other.method} would need {least / GIB:.1f} GiB")
    return "; ".join(said)


def settings(row: Row, *, longest: int, max_tokens: int, checkpointing: bool) -> list[str]:
    """What a command line says to run the row's best choice, where the configuration says so much."""
    best = row.best
    assert best is not None
    said = [f"method={row.method}"]
    if best.checkpointing != checkpointing:
        said.append(f"model.gradient_checkpointing={str(best.checkpointing).lower()}")
    if not best.expected.fits:
        said.append(f"data.max_tokens={min(max_tokens, best.fit.rows * longest)}")
    return said


def plain(row: Row) -> dict[str, Any]:
    """As JSON."""
    if row.refused is not None:
        return {"method": row.method, "refused": row.refused}
    return {"method": row.method, "choices": [_plain(choice) for choice in row.choices]}


def _plain(choice: Choice) -> dict[str, Any]:
    memory = choice.expected.memory
    return {
        "checkpointing": choice.checkpointing,
        "peak_gib": round(choice.expected.peak / GIB, 3),
        "when": memory.when,
        "fits": choice.expected.fits,
        "rows_at_once": choice.fit.rows,
        "trained": memory.trained,
        "bytes": {
            "weights": memory.weights + memory.beside,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "activations": memory.activations,
            "head": memory.head,
        },
        "moments": dict(memory.moments),
        "seconds_an_epoch": choice.seconds,
    }
