"""Every job by `ray job submit` to a local cluster, as the README has it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.every_job import check_answer, check_files, every_job
from support.job_cluster import job_cluster, submit
from support.tiny import write_task, write_tiny_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    write_tiny_model(folder / "model")
    write_task(folder / "glue")
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with job_cluster() as address:
        yield address


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_every_job(address: str, shared: Path) -> None:
    jobs = every_job(shared)
    assert jobs.keys() == {path.stem for path in (ROOT / "jobs").glob("*.py")}
    for job, flags in jobs.items():
        done = submit(address, "python", f"jobs/{job}.py", *flags)
        assert done.returncode == 0, f"{job}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
        check_answer(job, done.stdout)
    check_files(shared)
