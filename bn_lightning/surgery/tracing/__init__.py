"""Run a model once and write down what it does."""
