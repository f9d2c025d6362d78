"""What runs in a model that carries norms."""
