"""Training code that runs in the worker processes."""
