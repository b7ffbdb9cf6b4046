"""Processes of their own that start at once, for what is heavy is imported once: they can be killed."""

from __future__ import annotations

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["glm_lightning.export", "glm_lightning.inference.predict"])
