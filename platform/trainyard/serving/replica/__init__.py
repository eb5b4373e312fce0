"""Serving code that runs in the process that holds the model."""
