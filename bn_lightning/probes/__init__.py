"""Measurements of a model at one moment, usable in a plain loop."""
