"""Norms folded into the layers around them."""
