"""Every listening socket of a cluster that trains, asked without a token, with a wrong and the right one.

sudo python tests/hosts/ports.py --json benchmarks/results/ports.json    (part of make test-cluster)

`benchmarks/ports_table.py` makes the table of docs/cluster.md of it. Fails when a socket that its OPEN does
not name answers without the token.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hosts import Host, end_in_order, missing
from ray_hosts import RayCluster, make_root_only
from scenarios import EARLY
from workload import STEPS, flags_for, write_workload

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from ports_table import OPEN, TOKENS, answering, rows
from provenance import provenance

PATHS = ("/metrics", "/api/version", "/api/jobs/", "/api/gcs_healthz", "/")
METHODS = {
    "NodeInfoGcsService/GetAllNodeInfo": "",
    "NodeManagerService/GetNodeStats": "",
    "ObjectManagerService/Pull": "0a1c" + "00" * 28 + "121c" + "00" * 28,  # an object nobody has
    "CoreWorkerService/NumPendingTasks": "",
    "ReporterService/HealthCheck": "",
    "RayletDriver/ClusterInfo": "",
}
"""One harmless method of each of Ray's gRPC services, and a valid request, in hex."""

RENDEZVOUS = range(32768, 61000)
"""Ports from which torch's store and gloo take theirs; Ray's gRPC in a worker has 10002 to 19999."""

PROBE = """
import http.client, json, sys
import grpc

def get(address, port, path, headers):
    try:
        connection = http.client.HTTPConnection(address, port, timeout=3)
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__

def call(address, port, method, message, headers):
    channel = grpc.insecure_channel(f"{address}:{port}", options=[("grpc.enable_http_proxy", 0)])
    try:
        metadata = [(name.lower(), value) for name, value in headers.items()]
        channel.unary_unary("/ray.rpc." + method)(bytes.fromhex(message), timeout=3, metadata=metadata)
        return "OK"
    except grpc.RpcError as error:
        return error.code().name
    finally:
        channel.close()

question = json.load(sys.stdin)
for address, port in question["sockets"]:
    row = {}
    for name, token in question["tokens"].items():
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        row[name] = {path: get(address, port, path, headers) for path in question["paths"]}
        if not any(isinstance(status, int) for status in row[name].values()):
            row[name] = {
                method: call(address, port, method, message, headers)
                for method, message in question["methods"].items()
            }
    print(json.dumps([address, port, row]), flush=True)
"""


def listening(host: Host) -> Iterator[tuple[int, str, str]]:
    """(port, address it is bound to, process) of each listening TCP socket of the host."""
    for line in host.run(["ss", "-Hltnp"]).splitlines():
        local, owner = line.split()[3], re.search(r'\(\("([^"]+)"', line)
        address, _, port = local.rpartition(":")
        yield int(port), address, owner[1] if owner else "?"


def ask(cluster: RayCluster, sockets: list[tuple[str, int]]) -> dict[tuple[str, int], Any]:
    """What each socket answers to the client, by token: HTTP statuses, or else gRPC codes."""
    tokens = {"none": "", "wrong": "0" * 64, "right": cluster.token.read_text()}
    question = {"sockets": sockets, "tokens": tokens, "paths": PATHS, "methods": METHODS}
    done = subprocess.run(
        cluster.client.command([sys.executable, "-c", PROBE]), input=json.dumps(question),
        capture_output=True, text=True, env=cluster.environment(cluster.client), check=True,
    )  # fmt: skip
    rows = map(json.loads, done.stdout.splitlines())
    return {(address, port): row for address, port, row in rows}


def kind(row: dict[str, Any]) -> str:
    """What a socket is, by who holds it and what it understood."""
    if row["process"].startswith("ray::RayTrain") and row["port"] in RENDEZVOUS:
        return "rendezvous of a run"
    right = row["answers"]["right"]
    fixed = row["port"] in (8265, 52365)
    if right.get("/metrics") == 200 and not fixed:
        return "metrics"
    if "/metrics" in right:
        names = {"ray::DashboardA": "dashboard agent", "ray::RuntimeEnv": "environment agent"}
        return f"{names.get(row['process'], 'dashboard')}, HTTP"
    understood = [name for name, code in right.items() if code != "UNIMPLEMENTED"]
    return f"{understood[0].split('/')[0]}, gRPC" if len(understood) == 1 else "unknown"


def matrix(cluster: RayCluster) -> list[dict[str, Any]]:
    """One row for each socket that another host can reach; those that a stranger breaks come last."""
    found: list[dict[str, Any]] = [
        {"host": host.name, "address": host.address, "port": port, "bound": bound,
         "process": process}
        for host in (cluster.head, *cluster.workers)
        for port, bound, process in listening(host)
        if "127.0.0.1" not in bound
    ]  # fmt: skip
    found.sort(key=lambda row: row["process"].startswith("ray::RayTrain"))
    found.sort(
        key=lambda row: row["process"].startswith("ray::RayTrain") and row["port"] in RENDEZVOUS
    )
    answers = ask(cluster, [(row["address"], row["port"]) for row in found])
    for row in found:
        row["answers"] = answers[row["address"], row["port"]]
        row["kind"] = kind(row)
    return found


def check(sockets: list[dict[str, Any]]) -> None:
    """Fail when a kind of socket answers without the token, or refuses the right one."""
    for name in {row["kind"] for row in sockets} - set(OPEN):
        same = [row for row in sockets if row["kind"] == name]
        found = {token: bool(answering(same, token)) for token in TOKENS}
        assert found == {"none": False, "wrong": False, "right": True}, f"{name}: {same}"


def main() -> None:
    """Print the matrix, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if reason := missing():
        print(f"skipped: {reason}")
        return
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="trainyard-ports-", ignore_cleanup_errors=True) as made:
        make_root_only(Path(made))
        write_workload(Path(made) / "shared")
        with RayCluster(Path(made), workers=2) as cluster:
            job = cluster.submit("ports", flags_for(Path(made) / "shared", "ports", STEPS))
            job.wait_for_step(EARLY)
            sockets = matrix(cluster)
            job.stop()
    if args.json:
        args.json.write_text(json.dumps({**provenance(), "sockets": sockets}, indent=1) + "\n")
    for cells in rows(sockets):
        print(" | ".join(cells))
    check(sockets)


if __name__ == "__main__":
    main()
