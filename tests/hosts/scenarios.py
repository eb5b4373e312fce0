"""What can happen to a cluster while a run trains on it. Each ends with the undisturbed run's weights.

A scenario gets the cluster and the run's flags, does the damage at a step of its choice, and
returns what it measured; `check` then compares the run folder with the undisturbed one.
"""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hosts import Host, until
from ray_hosts import Job, RayCluster
from workload import SAVE_STEPS

Found = dict[str, Any]
Scenario = Callable[[RayCluster, str, list[str]], Found]

EARLY = 150
"""Step of the damage: some checkpoints are behind it, most of the run is before it."""


LONG_SECONDS = 120
"""Training time after the damage in scenarios that wait for an expiry or a long recovery."""

ENDED = "was taken over by .*; it ends here and writes nothing more"
"""The sentence of a driver that has lost its lease."""


def finish(job: Job) -> None:
    """Wait for the job, which must succeed."""
    status = job.wait()
    assert status == 0, f"{job.id} ended with {status}:\n{job.log.read_text()[-3000:]}"


def recovery(job: Job, fault: float, before: str | None) -> Found:
    """Seconds from the fault until the driver knew, and until another attempt trained."""
    again = job.wait_for_another_attempt(before)
    error = job.run / "error.txt"
    found: Found = {"recovered_seconds": round(again - fault, 1)}
    if error.exists() and error.stat().st_mtime > fault:
        found["detected_seconds"] = round(error.stat().st_mtime - fault, 1)
    return found


def undisturbed(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """Nothing happens."""
    job = cluster.submit(name, flags)
    finish(job)
    return {}


def worker_kill(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """SIGKILL of the process that trains as rank 1."""
    job = cluster.submit(name, flags)
    job.wait_for_step(EARLY)
    before, (host,) = job.attempt(), job.others()
    fault = time.time()
    host.processes("RayTrainWorker")[0].kill()
    found = recovery(job, fault, before)
    finish(job)
    return found


def power_off(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """The host of rank 0 loses power, and comes back when the run is over."""
    job = cluster.submit(name, flags)
    job.wait_for_step(EARLY)
    before, host = job.attempt(), job.rank_0()
    fault = time.time()
    host.power_off()
    found = recovery(job, fault, before)
    assert job.progress()["step"] >= SAVE_STEPS, "it did not resume from a checkpoint"
    finish(job)
    return found


def partition(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """The only worker's host is cut off, sees the storage, and trains on meanwhile.

    It comes back when its successor has stored a checkpoint: nothing that it writes may count.
    """
    job = cluster.submit(name, flags)
    job.wait_for_step(EARLY)
    before, host = job.attempt(), job.rank_0()
    zombie = host.processes("RayTrainWorker")[0]
    fault = time.time()
    host.cut()
    found = recovery(job, fault, before)
    job.wait_for_step(job.progress()["step"] + SAVE_STEPS)
    found["zombie_lives"] = zombie.is_running() and zombie.status() != "zombie"
    host.heal()
    finish(job)
    return found


def one_way_loss(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """The host of rank 1 hears the head, and the head hears nothing of it, until the run is over."""
    job = cluster.submit(name, flags)
    job.wait_for_step(EARLY)
    before, (host,) = job.attempt(), job.others()
    fault = time.time()
    host.lose_what_is_sent_to(cluster.head.address)
    found = recovery(job, fault, before)
    finish(job)
    return found


def drain(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """The host of rank 0 gets notice, as of a spot machine, and SIGTERM once it is left."""

    def notice(host: Host) -> None:
        nodes = (cluster.nodes() or {}).items()
        (node,) = (node for node, address in nodes if address == host.address)
        cluster.head.run(
            ["ray", "drain-node", "--address", f"{cluster.head.address}:6379", "--node-id", node,
             "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
             "--deadline-remaining-seconds", "30"],
            cluster.environment(cluster.head),
        )  # fmt: skip

    return leave(cluster, name, flags, notice)


def sigterm(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """The host of rank 0 is shut down: all it gets is SIGTERM, which `ray start --block` waits out."""
    return leave(cluster, name, flags, terminate)


def terminate(host: Host) -> None:
    """SIGTERM to what started Ray on a host, as when it shuts down."""
    for process in host.processes("ray start"):
        process.send_signal(signal.SIGTERM)


def leave(
    cluster: RayCluster, name: str, flags: list[str], notice: Callable[[Host], None]
) -> Found:
    """The host of rank 0 leaves after `notice`. No failure is allowed, none happens, no step is lost."""
    job = cluster.submit(name, [*flags, "--max-failures", "0"])
    job.wait_for_step(EARLY)
    before, host = job.attempt(), job.rank_0()
    fault, step = time.time(), job.progress()["step"]
    notice(host)
    found = recovery(job, fault, before)
    terminate(host)
    finish(job)
    said = re.search(r"restarting from step (\d+): a node is about to leave", job.log.read_text())
    assert said, "the driver did not say that it was restarting for the drain"
    assert int(said[1]) >= step, "the checkpoint is older than the notice"
    return {**found, "steps_lost": 0}


def driver_kill(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """SIGKILL of the driver; `ray job submit` says so by its exit status; the same command again."""
    job = cluster.submit(name, flags)
    job.wait_for_step(EARLY)
    before = job.attempt()
    fault = time.time()
    for process in cluster.head.processes("jobs/train.py"):
        process.kill()
    assert job.wait(120) != 0
    told = time.time()
    again = cluster.submit(name, flags)
    found = recovery(again, fault, before)
    finish(again)
    return {**found, "detected_seconds": round(told - fault, 1)}


def driver_suspend(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """SIGSTOP of the driver until a second one, of the same command, has finished the run."""
    job = cluster.submit(name, flags)
    job.wait_for_step(EARLY)
    before, first = job.attempt(), cluster.head.processes("jobs/train.py")
    fault = time.time()
    for process in first:
        process.suspend()
    again, found = take_over(cluster, name, flags, job)
    found |= recovery(again, fault, before)
    finish(again)
    left = content(job.run)
    found["ended_seconds"] = come_back(job, lambda: [process.resume() for process in first])
    assert content(job.run) == left, "the first driver changed what the second one left"
    return found


def driver_partition(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """The driver's host is cut off from cluster and storage until a second driver trains in its place."""
    (host,) = cluster.workers[2:]
    job = cluster.submit(name, flags, on=host)
    job.wait_for_step(EARLY)
    before, first = job.attempt(), host.processes("jobs/train.py")
    fault = time.time()
    host.cut()
    again, found = take_over(cluster, name, flags, job)
    found |= recovery(again, fault, before)
    attempt = again.attempt()
    found["zombie_lives"] = any(process.is_running() for process in first)
    back = time.time()
    host.restore()
    # Its Ray may end it first, as its host was marked dead.
    until(lambda: not any(process.is_running() for process in first), 60, "the first driver ends")
    found["ended_seconds"] = round(time.time() - back, 1)
    (log,) = (host.home / "ray").rglob(f"job-driver-{job.id}.log")
    found["says_so"] = re.search(ENDED, log.read_text()) is not None
    finish(again)
    assert again.attempt() == attempt, "the first driver made the second one start again"
    return found


def take_over(cluster: RayCluster, name: str, flags: list[str], first: Job) -> tuple[Job, Found]:
    """Give the same command until the lease of the `first` driver has expired."""
    started, refused, holder = time.time(), 0, first.holder()
    while True:
        job = cluster.submit(name, flags)
        until(
            lambda job=job: job.status is not None or job.holder() not in {None, holder}, 120,
            f"{job.id} is refused or takes over",
        )  # fmt: skip
        if job.status is None:
            break
        said = job.log.read_text()
        refusal = rf"run '{name}' is already being run by process \d+ on"
        assert re.search(refusal, said), said[-3000:]
        refused += 1
    assert refused, "the second driver did not wait for the lease to expire"
    return job, {"refused": refused, "expired_seconds": round(time.time() - started, 1)}


def come_back(job: Job, bring: Callable[[], object]) -> float:
    """Seconds until a driver ends that comes back after its lease was taken over, with one sentence."""
    assert job.status is None, f"{job.id} ended before it came back:\n{job.log.read_text()[-3000:]}"
    back = time.time()
    bring()
    assert job.wait(60) != 0
    ended = time.time() - back
    said, _, _ = job.log.read_text().partition(
        "Status message:"
    )  # which repeats the driver's output
    assert len(re.findall(ENDED, said)) == said.count("taken over") == 1, said[-3000:]
    assert "Traceback" not in said, said[-3000:]
    return round(ended, 1)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def job_stop(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """`ray job stop` saves a checkpoint at the step it is at; the same command goes on from there."""
    job = cluster.submit(name, flags)
    job.wait_for_step(EARLY)
    step = job.progress()["step"]
    fault = time.time()
    job.stop()
    job.wait(120)  # with 0: Ray's client fails for failed jobs only
    stopped = round(time.time() - fault, 1)
    said = job.log.read_text()
    assert re.search(r"stopped: run job-stop is saved at step \d+", said)
    assert f"Job '{job.id}' was stopped" in said
    record = json.loads((job.run / "run.json").read_text())
    newest = max(path.name for path in (job.run / "checkpoints").glob("step-*"))
    assert record["status"] == "stopped", record
    assert int(newest.removeprefix("step-")) >= step
    before = job.attempt()
    again = cluster.submit(name, flags)
    again.wait_for_another_attempt(before)
    finish(again)
    return {"saved_and_stopped_seconds": stopped, "steps_lost": 0}


def head_restart(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """The head loses power and comes back empty; workers join it again; the same command again."""
    job = cluster.submit(name, flags)
    job.wait_for_step(EARLY)
    before = job.attempt()
    fault = time.time()
    cluster.head.power_off()
    job.abandon()
    cluster.head.power_on()
    cluster.start_head()
    for host in cluster.workers:
        cluster.join(host)
    again = cluster.submit(name, flags)
    found = recovery(again, fault, before)
    finish(again)
    return found


def elastic(cluster: RayCluster, name: str, flags: list[str]) -> Found:
    """`--num-workers 1:2`: down to one when a host leaves, up to two when it is back."""
    for spare in cluster.workers[2:]:
        spare.power_off()
    cluster.wait_for_nodes(3)
    job = cluster.submit(name, [*flags, "--num-workers", "1:2"])
    job.wait_for_step(EARLY)
    before, (host,) = job.attempt(), job.others()
    fault = time.time()
    host.power_off()
    found = recovery(job, fault, before)
    alone = job.attempt()
    host.power_on()
    cluster.join(host)
    back = time.time()
    grown = job.wait_for_another_attempt(alone)
    finish(job)
    assert "room for 2 workers" in job.log.read_text()
    return {**found, "grown_seconds": round(grown - back, 1)}


def logged(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what is measured in seconds."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


SCENARIOS: dict[str, Scenario] = {
    "undisturbed-alone": undisturbed,
    "worker-kill": worker_kill,
    "power-off": power_off,
    "partition-alone": partition,
    "one-way-loss": one_way_loss,
    "drain": drain,
    "sigterm": sigterm,
    "driver-kill": driver_kill,
    "driver-suspend": driver_suspend,
    "driver-partition-bucket": driver_partition,
    "job-stop": job_stop,
    "elastic": elastic,
    "head-restart": head_restart,
    "power-off-fsdp": power_off,
    "power-off-zero2": power_off,
    "power-off-zero3": power_off,
}
"""By run name. Those that end in `-alone` have one worker, the others two; `-bucket` stores in a bucket.

Those that end in the name of a strategy (`workload.STRATEGIES`) train by it, the others by ddp.
"""

LONG = ("partition-alone", "driver-suspend", "driver-partition-bucket")
"""Scenarios whose run must last for LONG_SECONDS after the damage, on a fast machine, too."""
