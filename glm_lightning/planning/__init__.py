"""What fits on a device, and how long it takes: every method side by side, before anything is loaded."""
