"""A Ray cluster with token authentication on such hosts, and jobs submitted to it from outside."""

import contextlib
import json
import os
import secrets
import sys
import time
import traceback
import urllib.request
from pathlib import Path
from typing import Any, Self

import psutil
from hosts import STORAGE, Host, Network, until

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.s3_server import BUCKET, KEY, serve

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
PORT, DASHBOARD = 6379, 8265
HEALTH = {  # a node that does not answer is given up after about 6 s instead of a minute
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}


class RayCluster:
    """A head that does no work, `workers` hosts with one CPU each, and a client without Ray.

    They share a disk, `folder`/shared, and reach a bucket by their network.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        self.network = Network(folder)
        self._workers = workers
        self.token = folder / "auth_token"
        self.bucket = folder / "s3" / BUCKET
        self._servers = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.network.__enter__()
        try:
            self.bucket.parent.mkdir(exist_ok=True)
            self._endpoint = self._servers.enter_context(serve(self.bucket.parent, STORAGE))
            self.token.write_text(secrets.token_hex(32))
            self.token.chmod(0o600)
            self.head = self.network.host("head")
            self.workers = [self.network.host(f"worker{i}") for i in range(1, self._workers + 1)]
            self.client = self.network.host("client")
            self.start_head()
            for worker in self.workers:
                self.join(worker)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._servers.close()
        finally:
            self.network.__exit__()

    def bring_back(self) -> None:
        """Leave every host on, connected, in the cluster and without a job, whatever happened before."""
        try:
            self._mend()
        except Exception:  # as an operator would at last: everything off and on again
            traceback.print_exc()
            for host in (self.head, *self.workers, self.client):
                host.power_off()
            self._mend()

    def _mend(self) -> None:
        for host in (self.head, *self.workers, self.client):
            host.restore()
            for process in (*host.processes("jobs/train.py"), *host.processes("job submit")):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()  # a suspended one, too
        if self.nodes() is None:
            self.start_head()
        for worker in self.workers:
            # The head takes one that has just lost power for alive.
            if not worker.processes("raylet/raylet") or worker.address not in self.addresses():
                self.join(worker)
        until(
            lambda: not any(worker.processes("RayTrainWorker") for worker in self.workers), 90,
            "no worker of an earlier run is left",
        )  # fmt: skip
        self.wait_for_nodes(1 + len(self.workers))

    def environment(self, host: Host) -> dict[str, str]:
        """What a login on the host sees: no PYTHONPATH, so the package is not there."""
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(host.home),
            "LANG": "C.UTF-8",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_raylet_start_wait_time_s": "120",  # five hosts start at once, on few cores
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "AWS_ENDPOINT_URL": self._endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            **HEALTH,
        }

    def _start(self, host: Host, *flags: str) -> None:
        common = [f"--node-ip-address={host.address}", "--object-store-memory=100000000",
                  "--block", "--disable-usage-stats"]  # fmt: skip
        log = self.folder / f"{host.name}.log"
        host.start([RAY, "start", *flags, *common], log, self.environment(host), host.home)

    def start_head(self) -> None:
        """`ray start --head` on the head."""
        self._start(self.head, "--head", f"--port={PORT}", f"--dashboard-host={self.head.address}",
                    "--num-cpus=0")  # fmt: skip
        until(self._answers, 90, "the dashboard answers")

    def start_worker(self, host: Host) -> None:
        """`ray start` on a worker host."""
        self._start(host, f"--address={self.head.address}:{PORT}", "--num-cpus=1")

    def _answers(self) -> bool:
        return self.nodes() is not None

    def join(self, host: Host) -> None:
        """Have a host join the cluster, as an init system would: again, where `ray start` failed.

        (A raylet gives up when its agents take 15 s to start, which they do on busy cores.)
        """
        for _ in range(4):
            for process in host.processes("ray"):
                with contextlib.suppress(psutil.NoSuchProcess):  # its raylet's end took it along
                    process.kill()
            before = set(self.nodes() or {})
            self.start_worker(host)
            with contextlib.suppress(AssertionError):
                until(lambda before=before: self._joined(host, before), 40, f"{host.name} joins")
                return
        raise AssertionError(f"{host.name} does not join the cluster: {host.home}")

    def _joined(self, host: Host, before: set[str]) -> bool:
        """Return whether a node of the host is alive that is not one of those `before`."""
        return any(
            address == host.address and node not in before
            for node, address in (self.nodes() or {}).items()
        )

    def ask(self, path: str) -> Any:
        """A GET on the dashboard, with the token."""
        request = urllib.request.Request(
            f"http://{self.head.address}:{DASHBOARD}{path}",
            headers={"Authorization": f"Bearer {self.token.read_text()}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def nodes(self) -> dict[str, str] | None:
        """{node id: address} of the living nodes; None while the head does not answer.

        A host that was off has two until the head gives the first one up.
        """
        try:
            found = self.ask("/api/v0/nodes")["data"]["result"]["result"]
        except (OSError, KeyError, TypeError, ValueError):
            return None
        return {node["node_id"]: node["node_ip"] for node in found if node["state"] == "ALIVE"}

    def addresses(self) -> list[str]:
        """Addresses of the living nodes."""
        return list((self.nodes() or {}).values())

    def wait_for_nodes(self, count: int) -> float:
        """Wait until `count` nodes are alive; returns when they were."""
        return until(lambda: len(self.nodes() or {}) == count, 120, f"{count} nodes are alive")

    def submit(self, name: str, flags: list[str], on: Host | None = None) -> "Job":
        """`ray job submit` of jobs/train.py from the client; its driver runs on the head, or on `on`."""
        return Job(self, name, flags, on)

    def job_command(self, *words: str) -> list[str]:
        """A `ray job …` command for this cluster."""
        return [
            RAY,
            "job",
            words[0],
            "--address",
            f"http://{self.head.address}:{DASHBOARD}",
            *words[1:],
        ]


class Job:
    """One submission: its process on the client, its log, and the run folder it writes."""

    def __init__(
        self, cluster: RayCluster, name: str, flags: list[str], on: Host | None = None
    ) -> None:
        self.cluster, self.run = cluster, run_folder(cluster, name)
        where = (
            []
            if on is None
            else [
                "--entrypoint-num-cpus",
                "1",  # no worker of the run comes there, too
                "--entrypoint-resources",
                json.dumps({f"node:{on.address}": 0.001}),
            ]
        )
        script = ["jobs/train.py"]
        if "deepspeed" in flags:  # on CPUs
            script.insert(0, str(ROOT / "tests/support/lifted.py"))
        self.id = f"{name}-{time.time_ns()}"
        self.log = cluster.folder / f"{self.id}.log"
        self.started = time.time()
        self._process = cluster.client.start(
            cluster.job_command("submit", "--submission-id", self.id, "--runtime-env",
                                "runtime_env.yaml", "--working-dir", ".", *where, "--",
                                "python", *script, *flags, "--run-name", name),
            self.log, cluster.environment(cluster.client), ROOT,
        )  # fmt: skip

    @property
    def status(self) -> int | None:
        """Exit status of `ray job submit`, None while it goes on."""
        return self._process.poll()

    def stop(self) -> str:
        """`ray job stop`, from the client."""
        cluster = self.cluster
        return cluster.client.run(
            cluster.job_command("stop", self.id), cluster.environment(cluster.client)
        )

    def abandon(self) -> None:
        """End the process on the client, for a job whose head is gone."""
        self._process.kill()
        self._process.wait()

    def progress(self) -> dict[str, Any]:
        """progress.json, as it is now."""
        return read_json(self.run / "progress.json")

    def attempt(self) -> str | None:
        """Which attempt holds the run."""
        found = read_json(self._claim).get("attempt")
        return None if found is None else str(found)

    def holder(self) -> str | None:
        """Id of the lease that the run is held by."""
        return read_json(self.run / "lease.json").get("id")

    @property
    def _claim(self) -> Path:
        checkpoints = self.run / "checkpoints"
        in_bucket = checkpoints / "index.json"
        return in_bucket if in_bucket.exists() else checkpoints / "attempt.json"

    def wait_for_step(self, step: int, seconds: float = 240) -> float:
        """Wait until the run has made `step` steps."""

        def reached() -> bool:
            assert self.status is None, (
                f"{self.id} ended too early:\n{self.log.read_text()[-3000:]}"
            )
            return int(self.progress().get("step", 0)) >= step

        return until(reached, seconds, f"{self.id} reaches step {step}")

    def wait_for_another_attempt(self, before: str | None, seconds: float = 300) -> float:
        """Wait until another attempt has claimed the run and made a step."""

        def going_on() -> bool:
            assert self.status is None, (
                f"{self.id} ended too early:\n{self.log.read_text()[-3000:]}"
            )
            progress = self.run / "progress.json"
            return (
                self.attempt() not in {None, before}
                and progress.stat().st_mtime > self._claim.stat().st_mtime
            )

        return until(going_on, seconds, f"{self.id} goes on")

    def wait(self, seconds: float = 420) -> int:
        """Exit status of the finished job."""
        until(lambda: self.status is not None, seconds, f"{self.id} ends")
        assert self.status is not None
        return self.status

    def rank_0(self) -> Host:
        """The host of the worker that writes, by the name of its newest TensorBoard file."""
        newest = max((self.run / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime)
        (host,) = (one for one in self.cluster.workers if f".{one.name}." in newest.name)
        return host

    def others(self) -> list[Host]:
        """Hosts with a worker of this run that does not write."""
        first = self.rank_0()
        found = (one for one in self.cluster.workers if one.on and one.processes("RayTrainWorker"))
        return [one for one in found if one is not first]


def run_folder(cluster: RayCluster, name: str) -> Path:
    """Where a run is: in the bucket if its name ends in `-bucket`, else on the shared disk."""
    return (cluster.bucket if name.endswith("-bucket") else cluster.folder / "shared/runs") / name


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where it cannot be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def make_root_only(folder: Path) -> None:
    """A folder that nobody else reads: it holds the token and the logs."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)  # noqa: PTH101
