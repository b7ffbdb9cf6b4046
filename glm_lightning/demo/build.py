"""Make the demo's model and data: ``python -m glm_lightning.demo.build [--out FOLDER] [--steps N]``."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import GenerationConfig, GlmForCausalLM

from glm_lightning import templates, tokenizers
from glm_lightning.demo import tokenizer as demo_tokenizer
from glm_lightning.demo.corpus import brand_rows, write_rows
from glm_lightning.demo.other_rows import write_other_rows
from glm_lightning.demo.pretrain import Recipe, network, pretrain
from glm_lightning.files import atomic_folder
from glm_lightning.inference.loading import load
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer

DATA_SEED = 2
_QUESTIONS = (
    "类型#裙*材质#棉*颜色#白色*风格#简约",
    "有红色的外套吗？",
    "你好，你是谁？",
    "type#coat*material#wool*color#gray",
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a build made."""

    num_parameters: int
    num_tokens: int
    loss: float  # mean of the last 50 steps, nats a token
    seconds: float


def build(out: Path, recipe: Recipe, console: Console) -> Report:
    """Write ``out/data`` and ``out/model``; equal recipes give equal bytes on equal hardware and libraries."""
    started = time.monotonic()
    torch.set_num_threads(recipe.threads)
    with atomic_folder(out / "data") as folder:
        write_data(folder)
    with atomic_folder(out / "model") as folder:
        demo_tokenizer.save(folder)
        tokenizer = tokenizers.load(folder)
        template = templates.find("glm4", tokenizer, "glm")
        model = network(tokenizer, seed=recipe.seed)
        losses, num_tokens = _pretrain(model, tokenizer, template, recipe, console)
        _save(model, folder)
    last = losses[-50:]
    return Report(model.num_parameters(), num_tokens, sum(last) / len(last), time.monotonic() - started)


def write_data(folder: Path) -> None:
    """Write all rows of the demo."""
    write_rows(folder, brand_rows(DATA_SEED))
    write_other_rows(folder, seed=DATA_SEED)


def _pretrain(
    model: GlmForCausalLM, tokenizer: Tokenizer, template: Template, recipe: Recipe, console: Console
) -> tuple[list[float], int]:
    losses: list[float] = []
    num_tokens = 0
    columns = (TextColumn("pretraining"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=recipe.steps, loss=float("nan"))

        def report(loss: float, tokens: int) -> None:
            nonlocal num_tokens
            losses.append(loss)
            num_tokens += tokens
            progress.update(task, advance=1, loss=loss)
            if not console.is_terminal and len(losses) % 100 == 0:
                console.print(f"step {len(losses)} of {recipe.steps}, loss {loss:.3f}")

        pretrain(model, tokenizer, template, recipe, report)
    return losses, num_tokens


def _save(model: GlmForCausalLM, folder: Path) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    config = model.config
    model.generation_config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    model.save_pretrained(folder)


def _tell(report: Report, out: Path, console: Console) -> None:
    folder = out / "model"
    size = sum(file.stat().st_size for file in folder.iterdir())
    console.print(f"model      {folder}: {size / 1e6:.2f} MB, {report.num_parameters:,} parameters")
    console.print(f"data       {out / 'data'}")
    console.print(f"pretrained {report.num_tokens:,} tokens in {report.seconds:.0f} s, final loss {report.loss:.4f}")
    glm = load(folder)
    for question in _QUESTIONS:
        answer = glm.generate([{"role": "user", "content": question}], max_new_tokens=128)
        console.print(f"  {question}\n    {answer}", markup=False, highlight=False)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m glm_lightning.demo.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder that gets model/ and data/")
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="optimizer steps of the pretraining")
    arguments = parser.parse_args()
    console = Console()
    recipe = Recipe(steps=arguments.steps)
    _tell(build(arguments.out, recipe, console), arguments.out, console)


if __name__ == "__main__":
    main()
