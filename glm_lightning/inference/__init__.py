"""From a network to text."""
