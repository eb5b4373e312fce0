"""Serving code that runs in the process of a model's replica."""
