"""Serving code that runs in the gateway process."""
