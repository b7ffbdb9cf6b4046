"""Weights taken through an export as they are, without a tokenizer."""

from __future__ import annotations

from pathlib import Path

from glm_lightning.export.description import write_config
from glm_lightning.export.merging import Layout, Merging, Wanted
from glm_lightning.export.walking import Probe
from glm_lightning.models import Source


def rewrite(folder: Path, out: Path, *, layout: Layout = "official", origin: Path | None = None) -> None:
    """Write the weights and config.json of ``folder`` in a layout; ``origin`` is the folder that it came from."""
    out.mkdir()
    source = Source(path=str(folder))
    merging = Merging(
        source, None, Wanted(layout=layout), origin=source if origin is None else Source(path=str(origin))
    )
    vocabulary = source.config.vocab_size
    prompt = [7, 8, vocabulary // 2, getattr(source.config, "gmask_token_id", 9), source.config.bos_token_id or 9]
    measured = merging.write(out, Probe.of([prompt], pad_id=0), progress=lambda done: None)
    assert measured.difference == 0
    write_config(merging, out)
