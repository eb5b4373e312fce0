"""Serving code that runs in the process of a gateway replica."""
