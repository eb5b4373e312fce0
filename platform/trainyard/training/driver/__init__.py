"""Training code that runs in the driver process."""
