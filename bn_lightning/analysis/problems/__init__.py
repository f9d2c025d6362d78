"""Models, data and losses by name."""
