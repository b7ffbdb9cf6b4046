"""What is minimised: one class a file, each ``loss(network, batch) -> Loss``."""
