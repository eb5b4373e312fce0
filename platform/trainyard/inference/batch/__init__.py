"""Predict every row of a file."""
