"""Sweeps: jobs in processes of their own, several at once where that is wanted, and a ranked table at the end.

A process of its own, because Lightning's distributed launcher starts its ranks from the command line (which would be
the sweep's), and so that a job that is killed or leaks memory takes no other with it.
"""

from glm_lightning.sweeps.grid import Grid, Report, run_job
from glm_lightning.sweeps.search import Search, is_search, search

__all__ = ["Grid", "Report", "Search", "is_search", "run_job", "search"]
