"""Layers that can be inserted beyond what torch.nn holds."""
