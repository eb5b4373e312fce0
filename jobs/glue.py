"""Train every GLUE task with several seeds: `trainyard glue` as a script, for `ray job submit`."""

from trainyard.command import main

if __name__ == "__main__":
    main("glue")
