"""What `ray job submit --working-dir .` would send, by Ray's own packing, before it is sent."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trainyard.doctor.cluster.checks import Finding

RUNTIME_ENV = "runtime_env.yaml"
WARN_BYTES = 10 * 2**20


def weigh(folder: Path) -> Iterator[Finding]:
    """One finding, when `folder` is a checkout that jobs are submitted from."""
    if not (folder / RUNTIME_ENV).is_file():
        return
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    size = upload_bytes(folder)
    words = f"--working-dir . uploads {size / 2**20:.1f} MiB"
    remedy = f"name what jobs do not need under `excludes` in {RUNTIME_ENV}"
    if size > DASHBOARD_CLIENT_MAX_SIZE:
        limit = DASHBOARD_CLIENT_MAX_SIZE // 2**20
        yield Finding("upload", "failure", f"{words}, Ray takes {limit} MiB: {remedy}")
    elif size > WARN_BYTES:
        yield Finding("upload", "warning", f"{words}: {remedy}")
    else:
        yield Finding("upload", "ok", words)


def upload_bytes(folder: Path) -> int:
    """Size of the zip file that Ray makes of `folder`, with the excludes of its runtime_env.yaml."""
    import yaml
    from ray._private.runtime_env.packaging import create_package

    environment = yaml.safe_load((folder / RUNTIME_ENV).read_text())
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "working_dir.zip"
        create_package(
            str(folder),
            package,
            include_gitignore=True,
            excludes=environment.get("excludes", []),
            logger=logging.getLogger(__name__),
        )
        return package.stat().st_size
