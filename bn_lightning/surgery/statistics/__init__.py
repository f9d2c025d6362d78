"""Population statistics: estimated from batches, written, reported."""
