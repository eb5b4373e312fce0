"""Predictors, one task or family of tasks per file."""
