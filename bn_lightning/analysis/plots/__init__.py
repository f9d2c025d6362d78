"""Table in, Axes out; nothing here trains."""
