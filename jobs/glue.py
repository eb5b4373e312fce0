"""Train every GLUE task with several seeds: `python jobs/glue.py --data-dir DIR`, see --help."""

from trainyard.cli import run_job
from trainyard.glue import SuiteConfig


def suite(config: SuiteConfig) -> dict[str, object]:
    """Run the whole suite; imported here so that --help is instant."""
    from trainyard.glue import run_suite

    return run_suite(config)


if __name__ == "__main__":
    run_job(SuiteConfig, suite)
