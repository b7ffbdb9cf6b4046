"""What a teacher is worth, and what its cache costs: one JSON line each.

    python tests/benchmarks/distillation.py MODEL DATA --layers 10            # any folder, any rows
    python tests/benchmarks/distillation.py demo --layers 2                   # the embedded model on its own rows
    ... --runs alone,distilled --rows 200 optimizer.lr=3e-4                   # fewer runs and rows, other settings

The student is made of so many layers of MODEL, all of its weights are trained, and every run sees the same rows in the
same order for as many steps: ``alone`` with the labels only (objective=sft), ``distilled`` with the teacher asked in
every step, ``cached-K`` with its K likeliest tokens from disk. ``perplexity`` is that of the labels of the validation
rows whatever was minimised, so that runs can be compared; ``train_s`` are seconds of the training loop.

``cache`` lines compare, before any training, the student's divergence (nats a token, forward KL at temperature 1) from
what a cache of K float16 entries keeps with that from the teacher itself: the cached one is never larger, as the tokens
that are not kept count as one. ``error`` is the mean of what is missing, ``kept_mass`` the teacher's probability of the
tokens that are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

KINDS = ("alone", "distilled", "cached-128", "cached-32")
CACHED = (8, 32, 128, 512)
TOKENS = 4096
"""Of the validation rows, for the lines about the cache."""


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or demo")
    parser.add_argument("data", nargs="?", type=Path, help="rows in any format that is recognised; of demo: its own")
    parser.add_argument("--layers", type=int, required=True, help="of the student")
    parser.add_argument("--which", choices=["first", "spread"], default="spread", help="of the teacher's layers")
    parser.add_argument("--rows", type=int, help="to learn in an epoch (default: all)")
    parser.add_argument(
        "--held-out", type=int, default=50, help="last rows that validate, and as many that are answered"
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--runs", default=",".join(KINDS), help=f"of {','.join(KINDS)} (default: all)")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, for all runs")
    options = parser.parse_intermixed_args()
    if options.data is not None and "=" in str(options.data):
        options.data, options.overrides = None, [str(options.data), *options.overrides]
    with tempfile.TemporaryDirectory() as folder:
        common = [*_common(options, Path(folder)), *options.overrides]
        for line in cache_lines(options.model, common):
            print(json.dumps(line), flush=True)
        for kind in filter(None, options.runs.split(",")):
            print(json.dumps(run_line(kind, options.model, common)), flush=True)


def _common(options: argparse.Namespace, folder: Path) -> list[str]:
    """What all runs are told."""
    student = (
        ["model=demo"] if options.model == "demo" else ["experiment=cpu", "model=local", f"model.path={options.model}"]
    )
    settings = [
        *student,
        f"model.num_layers={options.layers}",
        f"model.layers={options.which}",
        "method=full",
        f"trainer.max_epochs={options.epochs}",
        "callbacks.checkpoints=null",
        "callbacks.early_stopping=null",
        "logger=none",
        f"outputs={folder}",
        f"data.cache_dir={folder / 'cache'}",
    ]
    if options.data is None:
        return [*settings, "data=demo_plain"]
    rows = f"{{path: {options.data}, rows: {options.rows}}}" if options.rows else str(options.data)
    held = [f"data.val={options.held_out}", f"data.test={options.held_out}", "data.split=last"]
    return [*settings, "data=auto", f"data.train={rows}", *held]


def run_line(kind: str, model: str, common: Sequence[str]) -> dict[str, Any]:
    """One run, and what its report says."""
    name, _, k = kind.partition("-")
    own = ["objective=sft"]
    if name != "alone":
        own = ["objective=distill", f"objective.teacher={model}", *([f"objective.top_k={k}"] if k else [])]
    run = _quietly([*own, *common])
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    shown = ("val/perplexity", "val/token_accuracy", "test/rouge_l", "test/bleu")
    scores = {name: round(report["metrics"][name], 4) for name in shown if name in report["metrics"]}
    before = {f"before/{name}": round(report["before"][name], 4) for name in shown if name in report["before"]}
    return {"run": kind, "steps": report["steps"], **before, **scores, "train_s": round(report["train_seconds"], 1)}


def _quietly(overrides: list[str]) -> Any:
    import glm_lightning as gl

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            return gl.train(overrides)
        except BaseException:
            sys.stderr.write(said.getvalue())
            raise


def cache_lines(model: str, common: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The error of the loss by a cache of each size, and before it the labels' perplexity by teacher and student."""
    import torch

    from glm_lightning import config
    from glm_lightning.config import made
    from glm_lightning.inference.loading import words
    from glm_lightning.losses.divergence import Likeliest, divergence, events, likeliest
    from glm_lightning.models import Source
    from glm_lightning.models.quiet import quiet
    from glm_lightning.training.run import with_autos_set

    quiet()
    composed = with_autos_set(config.compose([*common, "run_dir=nowhere"]))
    student, data = made(composed.model, "model"), made(composed.data, "data")
    networks = [source.load(dtype="float32").eval() for source in (Source(path=model), student)]
    data.load(*words(student, student.location))
    batches = data.evaluation_loader(data.splits.val)
    by_teacher, by_student, targets = (torch.cat(parts) for parts in zip(*_log_probs(networks, batches), strict=True))
    for name, log_probs in (("teacher", by_teacher), ("student", by_student)):
        likelihood = log_probs.gather(-1, targets[:, None]).mean()
        yield {"of": name, "tokens": len(targets), "perplexity": round((-likelihood).exp().item(), 4)}
    live = divergence(by_teacher, by_student, kind="forward_kl")
    for k in [*(k for k in CACHED if k < by_teacher.shape[-1]), by_teacher.shape[-1]]:
        found = likeliest(by_teacher, k)
        kept = Likeliest(found.ids, found.log_probs.half(), found.rest.half())
        cached = divergence(*events(by_student, kept), kind="forward_kl")
        yield {
            "cache": k,
            "divergence": round(live.mean().item(), 5),
            "cached": round(cached.mean().item(), 5),
            "error": round((live - cached).mean().item(), 6),
            "error_of_a_token": round((live - cached).abs().mean().item(), 6),
            "kept_mass": round(1 - found.rest.exp().mean().item(), 6),
            "bytes_a_token": 6 * k + 2,
        }


def _log_probs(networks: Sequence[Any], batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Log-probabilities (N, V) by each network, and labels (N,), of supervised positions, `TOKENS` or a few more."""
    import torch

    from glm_lightning.objectives.supervised import at_supervised

    seen = 0
    for batch in batches:
        if seen >= TOKENS:
            return
        found: list[Any] = []
        keep = functools.partial(_keep_logits, found)
        for network in networks:
            with torch.no_grad():
                at_supervised(network, batch, keep)
        seen += len(batch.targets)
        yield (*(logits.float().log_softmax(-1) for logits in found), batch.targets)


def _keep_logits(found: list[Any], head: Any, hidden_states: Any) -> Any:
    found.append(head.project(hidden_states))
    return hidden_states


if __name__ == "__main__":
    main()
