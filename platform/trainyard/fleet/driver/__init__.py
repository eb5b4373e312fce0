"""The driver of a fleet: its process asks Ray Tune to run the actors."""
