"""Batch normalization for PyTorch Lightning."""
