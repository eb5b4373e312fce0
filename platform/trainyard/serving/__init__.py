"""Hosting models behind HTTP: the batcher, one host per model, the gateway in front of them."""
