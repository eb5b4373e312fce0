"""Engines that run a forward pass."""
