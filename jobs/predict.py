"""Predict every row of a file: `trainyard predict` as a script, for `ray job submit`."""

from trainyard.command import main

if __name__ == "__main__":
    main("predict")
