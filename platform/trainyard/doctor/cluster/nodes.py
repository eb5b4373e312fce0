"""Run the probe on every node of the cluster at the same time."""

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainyard.doctor.cluster import probe
from trainyard.doctor.cluster.probe import Question
from trainyard.errors import one_line
from trainyard.storage import Bucket, storage_folder

Facts = dict[str, Any]


@contextmanager
def marked(storage_path: str) -> Iterator[Question]:
    """Write a marker file to the storage for the nodes to read.

    At exit, the marker and the files that nodes wrote next to it are removed.
    """
    name, content = f".doctor-{uuid.uuid4().hex}", uuid.uuid4().hex
    if "://" in storage_path:
        bucket = Bucket(storage_path, impatient=True)
        bucket.write(f"{name}/driver", content.encode())
        try:
            yield Question(storage_path, f"{name}/driver", content)
        finally:
            bucket.delete(bucket.names(name))
        return
    storage = storage_folder(storage_path)
    folder = storage / name
    folder.mkdir(parents=True)
    marker = folder / "driver"
    try:
        marker.write_text(content)
        yield Question(str(storage), str(marker), content)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a late node may still be writing


def ask(question: Question, *, timeout: float) -> dict[str, Facts]:
    """Return the facts about each alive node, by node id.

    A node that fails, or does not answer within `timeout` seconds, has the fact `fault`. A node
    that disappears before the last node answers is left out.
    """
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(probe)
    try:
        examine = ray.remote(num_cpus=0, max_retries=0)(probe.examine)
        clock = ray.remote(num_cpus=0, max_retries=0)(probe.clock)
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        pinned = {name: NodeAffinitySchedulingStrategy(name, soft=False) for name in nodes}
        answers = {
            name: examine.options(scheduling_strategy=pinned[name]).remote(question)
            for name in nodes
        }
        deadline = time.monotonic() + timeout
        facts_of = {}
        for name, answer in answers.items():
            facts = _take(answer, deadline)
            if "fault" not in facts:
                started = time.time()
                node_time = _take(
                    clock.options(scheduling_strategy=pinned[name]).remote(), time.monotonic() + 10
                )
                facts["clock"] = _skew(started, node_time, time.time())
            facts_of[name] = {
                **facts,
                "resources": nodes[name]["Resources"],
                "address": nodes[name]["NodeManagerAddress"],
            }
    finally:
        cloudpickle.unregister_pickle_by_value(probe)
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return _read_back(question, {name: facts_of[name] for name in facts_of if name in alive})


def _take(answer: Any, deadline: float) -> Any:
    import ray

    try:
        return ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        return {"fault": "did not answer in time"}
    except ray.exceptions.RayError as error:
        return {"fault": one_line(error)[-300:]}


def _skew(started: float, node_time: Any, ended: float) -> dict[str, float] | None:
    """Return the seconds by which a node's clock is ahead of the driver's, and the uncertainty.

    Returns None if the node did not answer.
    """
    if not isinstance(node_time, float):
        return None
    return {"ahead": node_time - (started + ended) / 2, "uncertainty": (ended - started) / 2}


def _read_back(question: Question, facts_of: dict[str, Facts]) -> dict[str, Facts]:
    """Read the file that each node wrote; set the fact `writes` if it is missing or differs.

    Shared file systems can show a file some seconds late: wait at most 10 seconds for all files.
    """
    folder = Path(question.marker).parent
    deadline = time.monotonic() + 10
    for facts in facts_of.values():
        if facts.get("wrote") is None:
            continue
        path = folder / facts["wrote"]
        while not path.exists() and time.monotonic() < deadline:
            list(folder.iterdir())
            time.sleep(0.2)
        if not path.exists() or path.read_text() != question.content:
            facts["writes"] = "the driver does not see the file that it wrote"
    return facts_of
