"""Checks of the cluster, the storage and the code on every node."""
