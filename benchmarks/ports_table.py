"""The table of sockets in docs/cluster.md, from results/ports.json of tests/hosts/ports.py."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markdown_tables import load, source, table

Socket = Mapping[str, Any]
"""One listening socket: `host`, `port`, `process`, `kind`, and `answers` by token and request."""

KINDS = {
    "NodeInfoGcsService, gRPC": "control store: gRPC",
    "NodeManagerService, gRPC": "nodes: gRPC",
    "ObjectManagerService, gRPC": "object managers: gRPC",
    "CoreWorkerService, gRPC": "worker processes: gRPC",
    "ReporterService, gRPC": "agents: gRPC",
    "RayletDriver, gRPC": "Ray client: gRPC",
    "dashboard, HTTP": "dashboard and jobs: HTTP",
    "dashboard agent, HTTP": "dashboard agents: HTTP",
    "environment agent, HTTP": "environment agents: HTTP",
    "metrics": "metrics: `GET /metrics`",
    "rendezvous of a run": "rendezvous of a run's workers (torch's store, gloo), while it trains",
}
"""Kind of socket -> its words in the table, in the order of its rows."""

OPEN = {
    "metrics": "Prometheus figures",
    "rendezvous of a run": "torch's store and gloo know no token; who connects can break the run",
}
"""Kinds of socket that answer anybody: the firewall's business."""

OPEN_PATHS = {"dashboard, HTTP": ("/", "/api/gcs_healthz")}
"""Static pages and the health check, which say nothing of the cluster's work."""

FIXED = (6379, 8265, 10001, 44217, 44227, 52365)
"""Ports of Ray that are the same in every cluster; the others are drawn."""

REFUSED = {"401", "403", "UNAUTHENTICATED"}
TOKENS = {"none": "no token", "wrong": "wrong token", "right": "right token"}


def statuses(sockets: Sequence[Socket], token: str) -> set[str]:
    """Return the HTTP statuses and gRPC codes of sockets of one kind, asked with a token.

    Open paths, and services that a socket does not have, are left out.
    """
    return {
        str(status)
        for socket in sockets
        for asked, status in socket["answers"][token].items()
        if asked not in OPEN_PATHS.get(socket["kind"], ()) and status != "UNIMPLEMENTED"
    }


def answering(sockets: Sequence[Socket], token: str) -> set[str]:
    """Return the statuses of sockets of one kind by which they do not refuse a token.

    A path that a socket does not have (404) counts for the right token only.
    """
    found = statuses(sockets, token) - REFUSED
    return found if token == "right" else found - {"404"}


def ports() -> str:
    """List what each kind of socket of a cluster answers to another host."""
    found = load("ports")
    return table(["socket", "port", "on", *TOKENS.values()], list(rows(found["sockets"]))) + source(
        found
    )


def rows(sockets: Sequence[Socket]) -> Iterator[list[str]]:
    """Yield a row for each kind of socket, and one for the open paths of a kind.

    Raises:
        ValueError: A kind of socket has no words yet.
    """
    order = list(KINDS)
    for kind in sorted({socket["kind"] for socket in sockets}, key=order.index):
        same = [socket for socket in sockets if socket["kind"] == kind]
        where = [_numbers(same), _hosts(same)]
        if kind in OPEN:
            cells = ["open"] * len(TOKENS)
        else:
            cells = [
                "answers" if answering(same, token) else _words(statuses(same, token))
                for token in TOKENS
            ]
        yield [KINDS[kind], *where, *cells]
        if paths := OPEN_PATHS.get(kind):
            yield [
                f"of these, {' and '.join(f'`{path}`' for path in paths)}",
                *where,
                *(
                    _words(
                        {str(socket["answers"][token][path]) for socket in same for path in paths}
                    )
                    for token in TOKENS
                ),
            ]


def _words(found: set[str]) -> str:
    return " or ".join(sorted(found))


def _numbers(sockets: Sequence[Socket]) -> str:
    numbers = {socket["port"] for socket in sockets}
    fixed = [f"{number}" for number in sorted(numbers) if number in FIXED]
    return ", ".join([*fixed, *(["others"] if fixed and numbers - set(FIXED) else [])]) or "any"


def _hosts(sockets: Sequence[Socket]) -> str:
    names = {"head" if socket["host"] == "head" else "workers" for socket in sockets}
    return "all" if len(names) == 2 else names.pop()
