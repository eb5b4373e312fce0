"""Train, serve and query the demo: `trainyard quickstart` as a script, for `ray job submit`."""

from trainyard.command import main

if __name__ == "__main__":
    main("quickstart")
