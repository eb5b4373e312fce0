"""Show runs and sweeps in a browser: `trainyard dashboard` as a script, for `ray job submit`."""

from trainyard.command import main

if __name__ == "__main__":
    main("dashboard")
