"""Hosts on one machine: each a network, process, mount and IPC namespace with its own address.

Needs root, `ip`, `unshare`, `setpriv` and `nsenter`; no Docker. A host's processes die with it, and
so does its end of the cable, so a power-off leaves nothing behind; a host dies with the process that
switched it on. Only the bridge has to be taken down: by that process, or by the next test.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

SUBNET = "10.77.0"
STORAGE = f"{SUBNET}.254"
"""Address of the machine itself, as the hosts see it: a storage server for them listens there."""

BOOT = """
set -e
hostname {name}
mount -t tmpfs -o size=1g tmpfs /dev/shm
mkdir -p {home}/ray /tmp/ray
mount --bind {home}/ray /tmp/ray
for link in {installed}; do mount --bind /dev/null "$link"; done
touch {home}/booted
sleep infinity & wait
"""


INSTALLED = sorted(Path(sysconfig.get_path("purelib")).glob("__editable__.trainyard*.pth"))
"""What makes the project importable in this environment. On the hosts it is not: they have its
dependencies only, and the code must come with the job."""


def end_in_order() -> None:
    """SIGTERM ends the hosts too, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def missing() -> str | None:
    """Why hosts cannot be made here, or None."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    for tool in ("ip", "unshare", "setpriv", "nsenter"):
        if shutil.which(tool) is None:
            return f"needs the command {tool} (Debian: iproute2, util-linux)"
    probe = subprocess.run(["unshare", "--net", "--pid", "--mount", "--fork", "true"], check=False)
    return (
        None if probe.returncode == 0 else "may not make namespaces (in a container? --privileged)"
    )


def ip(command: str) -> None:
    """Run `ip`, loudly."""
    subprocess.run(["ip", *shlex.split(command)], check=True)


def take_down_what_is_left() -> None:
    """Delete bridges of tests that were killed: two with one subnet, and no host can be reached."""
    for folder in Path("/sys/class/net").glob("ty[0-9]*/bridge"):
        bridge = folder.parent.name
        owner = int(bridge.removeprefix("ty"))
        if psutil.pid_exists(owner):
            sys.exit(
                f"the bridge {bridge} of process {owner} has the hosts' subnet {SUBNET}.0/24: wait "
                f"for that test to end, or, if it is none, `ip link delete {bridge}`"
            )
        ip(f"link delete {bridge}")


class Network:
    """A bridge that the hosts hang on; taken down on exit, with every host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bridge = f"ty{os.getpid()}"
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        take_down_what_is_left()
        ip(f"link add {self.bridge} type bridge")
        try:
            ip(f"addr add {STORAGE}/24 dev {self.bridge}")
            ip(f"link set {self.bridge} up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for host in self.hosts.values():
                host.power_off()
        finally:  # after a second Ctrl-C, too; the hosts end with this process
            ip(f"link delete {self.bridge}")

    def host(self, name: str) -> "Host":
        """A host called `name`, switched on."""
        self.hosts[name] = Host(self, name, len(self.hosts) + 1)
        self.hosts[name].power_on()
        return self.hosts[name]


class Host:
    """One machine: `run` on it, cut its cable, switch it off and on."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self.name, self.address = name, f"{SUBNET}.{number}"
        self.home = network.folder / name
        self._bridge, self._cable = network.bridge, f"{network.bridge}v{number}"
        self._shell: subprocess.Popen[bytes] | None = None

    def power_on(self) -> None:
        """Boot: namespaces, /dev/shm, /tmp/ray, and a cable to the bridge."""
        self.home.mkdir(exist_ok=True)
        shutil.rmtree(self.home / "ray", ignore_errors=True)
        (self.home / "booted").unlink(missing_ok=True)
        boot = BOOT.format(
            name=self.name,
            home=shlex.quote(str(self.home)),
            installed=shlex.join(map(str, INSTALLED)),
        )
        self._shell = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--uts", "--ipc",
             "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", boot],
            start_new_session=True,
        )  # fmt: skip
        until(lambda: (self.home / "booted").exists(), 20, f"{self.name} boots")
        ip(f"link add {self._cable} type veth peer name eth0 netns {self.init}")
        ip(f"link set {self._cable} master {self._bridge} up")
        for command in (
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
        ):
            self.run(["ip", *command.split()])

    @property
    def on(self) -> bool:
        """Whether it is switched on."""
        return self._shell is not None and self._shell.poll() is None

    @property
    def init(self) -> int:
        """Process 1 of the host, as the machine counts."""
        assert self._shell is not None
        return int(psutil.Process(self._shell.pid).children()[0].pid)

    def power_off(self) -> None:
        """Pull the plug: the network falls silent first, then every process is gone."""
        if not self.on:
            return
        subprocess.run(["ip", "link", "delete", self._cable], check=False)
        assert self._shell is not None
        first = psutil.Process(self._shell.pid).children()
        self._shell.kill()
        self._shell.wait()
        # Process 1 ends after all others, which may still write into a folder that is deleted next.
        until(lambda: all(map(ended, first)), 30, f"{self.name} is off")

    def cut(self) -> None:
        """Pull the network cable."""
        ip(f"link set {self._cable} down")

    def heal(self) -> None:
        """Plug it in again."""
        ip(f"link set {self._cable} up")

    def lose_what_is_sent_to(self, address: str) -> None:
        """One-way loss: frames for `address` leave with a hardware address that no host has."""
        unused = "02:00:00:00:00:99"
        self.run(["ip", *f"neigh replace {address} lladdr {unused} nud permanent dev eth0".split()])

    def restore(self) -> None:
        """Switch it on where it is off, plug its cable in and end every loss."""
        if not self.on:
            self.power_on()
            return
        self.heal()
        self.run(["ip", "neigh", "flush", "dev", "eth0", "nud", "permanent"])

    def command(self, command: Sequence[str]) -> list[str]:
        """`command` as this machine runs it on the host."""
        where = ["--pid", "--mount", "--net", "--uts", "--ipc"]
        return ["nsenter", "--target", str(self.init), *where, "--", *command]

    def start(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[bytes]:
        """Start `command` on the host, its output going to `log`."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(["env", "-C", str(folder), *command]), stdout=output,
                stderr=subprocess.STDOUT, env=dict(environment), stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
        """Run `command` on the host and return what it printed; fail when it fails."""
        done = subprocess.run(
            self.command(command), env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{self.name}: {command}: {done.stdout}{done.stderr}"
        return done.stdout

    def processes(self, word: str) -> list[psutil.Process]:
        """Processes of the host whose command line holds `word`; not its process 1, which dies with it."""
        init = self.init
        namespace = Path(f"/proc/{init}/ns/pid").readlink()
        found = []
        for process in psutil.process_iter():
            try:
                here = Path(f"/proc/{process.pid}/ns/pid").readlink() == namespace
                if here and process.pid != init and word in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


def ended(process: psutil.Process) -> bool:
    """Return whether a process is gone, or a zombie, of which only its parent knows."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def until(condition: object, seconds: float, what: str) -> float:
    """Wait for `condition()` to be true; returns when it was; fails after `seconds`."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)
    return time.time()
