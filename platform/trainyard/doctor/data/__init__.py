"""Checks of a data set: leaks, duplicates, labels, damaged texts, drift."""
