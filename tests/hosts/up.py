"""`ray up` with cluster-onpremises.yaml against hosts that have ssh, every kind of job, and `ray down`.

    sudo python tests/hosts/up.py           (part of make test-cluster)

Of the file only the keys marked EDIT are changed. The hosts' ~/venv is this environment without the
project, as on machines that were installed before: they reach no package index. `ray stop`, which the
file calls, ends what it finds in the host's own process namespace.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosts import SUBNET, Host, Network, end_in_order, missing, until
from ray_hosts import RAY, ROOT, make_root_only
from support.every_job import check_answer, every_job
from workload import write_workload

USER = "trainyard"
SSHD = """
Port 22
HostKey {home}/host_key
AuthorizedKeysFile {home}/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
PidFile none
Subsystem sftp internal-sftp
"""


def need() -> str | None:
    """Why this cannot run here, or None."""
    for tool in ("sshd", "ssh", "ssh-keygen", "rsync", "curl"):
        if shutil.which(tool) is None:
            return f"needs the command {tool} (Debian: openssh-server, openssh-client, rsync, curl)"
    return missing()


def prepare(host: Host, key: Path) -> None:
    """A login `trainyard` by ssh with a home of its own, and a route out, as machines have."""
    home = host.home
    (home / ".ssh").mkdir(exist_ok=True)
    shutil.copy(key.with_suffix(".pub"), home / ".ssh/authorized_keys")
    for name in (".bashrc", ".profile"):
        shutil.copy(Path("/etc/skel") / name, home / name)
    (home / "venv").symlink_to(sys.prefix)
    users = home / "passwd"
    # Root by another name, and the first: ssh looks its home up by number.
    users.write_text(f"{USER}:x:0:0::{home}:/bin/bash\n{Path('/etc/passwd').read_text()}")
    host.run(["mount", "--bind", str(users), "/etc/passwd"])
    host.run(["ip", "route", "add", "default", "via", f"{SUBNET}.254"])
    generate_key(home / "host_key")
    (home / "sshd_config").write_text(SSHD.format(home=home))
    Path("/run/sshd").mkdir(exist_ok=True)
    host.run([str(shutil.which("sshd")), "-f", str(home / "sshd_config")])


def generate_key(path: Path) -> None:
    """An ed25519 key pair at `path` and `path`.pub."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def edited(folder: Path, head: Host, workers: list[Host], key: Path) -> Path:
    """cluster-onpremises.yaml with its EDIT keys set, and nothing else."""
    text = (ROOT / "cluster-onpremises.yaml").read_text()
    for old, new in {
        "192.0.2.10": head.address,
        "[192.0.2.11, 192.0.2.12]": json.dumps([host.address for host in workers]),
        "~/.ssh/id_ed25519": str(key),
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    written = folder / "cluster-onpremises.yaml"
    written.write_text(text)
    return written


class Client:
    """Where commands are typed: the checkout, the token, and ssh to the cluster."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(host.home), "USER": USER, "LANG": "C.UTF-8", "TERM": "dumb",
            "RAY_AUTH_MODE": "token", "RAY_ADDRESS": "http://127.0.0.1:8265",
        }  # fmt: skip

    def run(self, *words: str) -> str:
        """Type `ray …`, and fail when it fails; returns all that it printed."""
        log = self.host.home / "commands.log"
        before = log.stat().st_size if log.exists() else 0
        status = self.host.start([RAY, *words], log, self.environment, ROOT).wait()
        said = log.read_bytes()[before:].decode()
        assert status == 0, f"ray {' '.join(words)} ended with {status}:\n{said[-4000:]}"
        return said

    @contextlib.contextmanager
    def tunnel(self, config: Path) -> Iterator[None]:
        """`ray dashboard`, in the background as in the README."""
        log = self.host.home / "tunnel.log"
        tunnel = self.host.start([RAY, "dashboard", str(config)], log, self.environment, ROOT)
        try:
            yield
        finally:
            tunnel.kill()
            tunnel.wait()

    def token(self) -> bytes:
        """What `ray get-auth-token --generate` made."""
        return (self.host.home / ".ray/auth_token").read_bytes().strip()

    def nodes(self) -> int:
        """Living nodes by the dashboard, through the tunnel; 0 while nothing answers."""
        asked = ["curl", "-sf", "-m", "5", "-H", "@-", "http://127.0.0.1:8265/api/v0/nodes"]
        answer = subprocess.run(
            self.host.command(asked), capture_output=True, check=False,
            input=b"Authorization: Bearer " + self.token(),
        ).stdout  # fmt: skip
        with contextlib.suppress(ValueError, KeyError):
            found = json.loads(answer)["data"]["result"]["result"]
            return sum(node["state"] == "ALIVE" for node in found)
        return 0


def keep_secret(token: bytes, folder: Path, machines: list[Host]) -> None:
    """Assert that the token is in no log, no command line and no other file of the cluster."""
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "auth_token":
            assert token not in path.read_bytes(), f"the token is in {path}"
    for host in machines:
        for process in host.processes(""):
            assert token.decode() not in " ".join(process.cmdline()), f"the token is in {process}"


def live_through(folder: Path) -> dict[str, Any]:
    """Up, the jobs, down; seconds of each."""
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(what: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            seconds[what] = round(seconds.get(what, 0) + time.monotonic() - started, 1)

    write_workload(folder / "shared")
    key = folder / "key"
    generate_key(key)
    with Network(folder) as network:
        head, *workers = machines = [network.host(name) for name in ("head", "worker1", "worker2")]
        client = Client(network.host("client"))
        for host in machines:
            prepare(host, key)
        prepare(client.host, key)
        config = str(edited(folder, head, workers, key))
        client.host.run([RAY, "get-auth-token", "--generate"], client.environment)  # it prints it
        # Ray gives its agents 15 s to start, which they do not always do on busy cores: then, as a
        # user would, the same command again.
        for last in (False, False, True):
            with (
                timed("ray up"),
                contextlib.nullcontext() if last else contextlib.suppress(AssertionError),
            ):
                client.run("up", "--yes", config)
                with client.tunnel(Path(config)):
                    until(lambda: client.nodes() == 1 + len(workers), 120, "three nodes are alive")
                break
        with client.tunnel(Path(config)):
            until(lambda: client.nodes() == 1 + len(workers), 60, "three nodes are alive")
            submit = (
                "job",
                "submit",
                "--runtime-env",
                "runtime_env.yaml",
                "--working-dir",
                ".",
                "--",
            )
            for job, words in every_job(folder / "shared").items():
                with timed(job):
                    said = client.run(*submit, "python", f"jobs/{job}.py", *words)
                check_answer(job, said)
            keep_secret(client.token(), folder, [*machines, client.host])
        with timed("ray down"):
            client.run("down", "--yes", config)
        with timed("until nothing is left"):  # Ray's local provider stops the head only
            until(
                lambda: not any(host.processes("ray") for host in machines), 150, "workers end too"
            )
    return {"seconds": seconds}


def main() -> None:
    """Print the seconds of each part as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep everything here")
    args = parser.parse_args()
    if reason := need():
        print(f"skipped: {reason}")
        return
    end_in_order()
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="trainyard-up-", ignore_cleanup_errors=True)
            )
        )
        make_root_only(folder)
        print(json.dumps(live_through(folder), indent=2))


if __name__ == "__main__":
    main()
