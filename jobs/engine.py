"""Choose the engine that serves a model: `trainyard engine` as a script, for `ray job submit`."""

from trainyard.command import main

if __name__ == "__main__":
    main("engine")
