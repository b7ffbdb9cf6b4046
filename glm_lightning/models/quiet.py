"""Silence what libraries say on loading that no user can act on."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator


def quiet() -> None:
    """Keep peft's notices, and progress bars where nobody watches, off the console."""
    from transformers.utils import logging as transformers_logging

    # peft 0.21 says so of AdaLoRA adapters that it loads and of experts, and uses the keys all the same
    warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match any targeted")
    # peft 0.21 against transformers 5.23
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """While it is entered, transformers prints no table of what files lack or hold besides: we refuse or mean it."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
