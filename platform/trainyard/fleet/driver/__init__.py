"""Driver of a fleet, in the job's process: it starts actors through Ray Tune."""
