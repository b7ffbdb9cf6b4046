"""``glm export``: a run as a model folder or an adapter for others."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from glm_lightning.export.folders import default_folder, export_adapter, export_model
from glm_lightning.export.writing import shard_bytes
from glm_lightning.types import UserError


def main(argv: Sequence[str]) -> None:
    """Export a run from the command line."""
    options = _parser().parse_args(argv)
    shard_size = shard_bytes(options.shard_size)
    if options.adapter:
        _refuse_with_adapter(options)
    out = options.out or default_folder(options.source)
    if options.adapter:
        exported = export_adapter(options.source, out)
    else:
        exported = export_model(
            options.source,
            out,
            layout=options.layout,
            dtype=options.dtype,
            quantize=options.quantize,
            blend=options.blend,
            shard_size=shard_size,
        )
    Console(highlight=False).print(f"{exported.folder}: {exported.notice}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glm export",
        description="Write what was trained as a whole model (the default) or as an adapter. A whole model goes "
        "through memory part by part, whatever its size, and loads in plain transformers.",
    )
    parser.add_argument("source", help="run folder, adapter folder, model folder or hub name")
    parser.add_argument(
        "out", type=Path, nargs="?", help="the folder to write; must not exist (default: named as the source, here)"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--merge", action="store_true", help="the whole model, with what was learned in it (the default)")
    kind.add_argument("--adapter", action="store_true", help="the adapter alone, in PEFT's format")
    parser.add_argument(
        "--layout",
        choices=["native", "official"],
        default="native",
        help="native (default): transformers' own; official: that of ChatGLM-6B, 2, 3 and GLM-4-9B as released",
    )
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="default: as stored"
    )
    parser.add_argument(
        "--quantize", choices=["nf4", "int8"], help="hold the linear layers in 4 or 8 bits (bitsandbytes)"
    )
    parser.add_argument(
        "--blend",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="go this far from the base (0) to what was trained (1, default): less was learned, less is forgotten",
    )
    parser.add_argument(
        "--shard-size", default="4GB", metavar="SIZE", help="largest file, and what is held in memory (default: 4GB)"
    )
    return parser


def _refuse_with_adapter(options: argparse.Namespace) -> None:
    """An adapter is copied as it is: nothing about the base's weights can be chosen with it."""
    for name in ("layout", "dtype", "quantize", "blend"):
        if getattr(options, name) != _parser().get_default(name):
            raise UserError(f"--{name} with --adapter: is about the whole model's weights; leave one of the two out")
