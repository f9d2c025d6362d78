"""Callbacks by which a study's arms change a model before it is trained, whoever wrote it."""
