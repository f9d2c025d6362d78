"""Comparisons of training runs with error bars."""
