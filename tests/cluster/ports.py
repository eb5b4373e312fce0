"""Every listening socket of a running cluster, asked without a token, with a wrong one and the right one.

sudo python tests/cluster/ports.py --json benchmarks/results/ports.json
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

from hosts import Host, missing
from ray_hosts import RayCluster, make_root_only

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

def call(address, port, headers):
    channel = grpc.insecure_channel(f"{address}:{port}", options=[("grpc.enable_http_proxy", 0)])
    method = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
    try:
        method(b"", timeout=3, metadata=[(name.lower(), value) for name, value in headers.items()])
        return "OK"
    except grpc.RpcError as error:
        return error.code().name

question = json.load(sys.stdin)
for address, port in question["sockets"]:
    row = {}
    for name, token in question["tokens"].items():
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        row[name] = {path: get(address, port, path, headers) for path in ("/api/version", "/metrics")}
        row[name]["grpc"] = call(address, port, headers)
    print(json.dumps([address, port, row]), flush=True)
"""


def listening(host: Host) -> Iterator[tuple[int, str, str]]:
    """(port, address it is bound to, process) of each listening TCP socket of the host."""
    for line in host.run(["ss", "-Hltnp"]).splitlines():
        local, owner = line.split()[3], re.search(r'\(\("([^"]+)"', line)
        address, _, port = local.rpartition(":")
        yield int(port), address, owner[1] if owner else "?"


def ask(cluster: RayCluster, sockets: list[tuple[str, int]]) -> dict[tuple[str, int], Any]:
    """What each socket answers to the client, by token: HTTP statuses and a gRPC code."""
    tokens = {"none": "", "wrong": "0" * 64, "right": cluster.token.read_text()}
    done = subprocess.run(
        cluster.client.command([sys.executable, "-c", PROBE]),
        input=json.dumps({"sockets": sockets, "tokens": tokens}), capture_output=True, text=True,
        env=cluster.environment(cluster.client), check=True,
    )  # fmt: skip
    rows = map(json.loads, done.stdout.splitlines())
    return {(address, port): row for address, port, row in rows}


def main() -> None:
    """Print the matrix, and write it with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if reason := missing():
        print(f"skipped: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="trainyard-ports-", ignore_cleanup_errors=True) as made:
        make_root_only(Path(made))
        with RayCluster(Path(made), workers=1) as cluster:
            rows: list[dict[str, Any]] = [
                {"host": host.name, "address": host.address, "port": port, "bound": bound,
                 "process": process}
                for host in (cluster.head, *cluster.workers)
                for port, bound, process in listening(host)
            ]  # fmt: skip
            outside = [
                (row["address"], row["port"]) for row in rows if not row["bound"].startswith("127.")
            ]
            answers = ask(cluster, outside)
            for row in rows:
                row["answers"] = answers.get((row["address"], row["port"]), "loopback only")
                print(json.dumps(row))
    if args.json:
        args.json.write_text(json.dumps({"sockets": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
