"""Memory and time of a run before it starts, from shapes alone: no weight is read."""
