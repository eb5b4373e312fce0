"""Batch inference: predict every row of a file."""
