"""Decide where norms belong, with reasons."""
