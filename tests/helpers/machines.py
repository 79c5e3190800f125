"""Several machines on one, for Ray: network, processes, host name, shared memory, /tmp/ray and home of their own.

Linux namespaces joined by a cable (veth). They take root, which an unprivileged container does not give: `why_not` says so.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}
PORT, CABLE = "lan", "wire"
# Whatever runs in it ends with the tests, however these do.
OWN = ("setpriv", "--pdeathsig=KILL", "unshare", "--net", "--pid", "--mount", "--uts", "--ipc")
OWN += ("--fork", "--kill-child", "--mount-proc")


def why_not() -> str | None:
    """Why machines cannot be made here; None where they can."""
    missing = [name for name in ("unshare", "nsenter", "setpriv", "ip") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: util-linux, iproute2)"
    attempt = [*OWN, "ip", "link", "add", PORT, "type", "bridge"]
    tried = subprocess.run(attempt, capture_output=True, text=True, timeout=30, check=False)
    return f"network namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Machine:
    """`init` is its first process, with which all others of it end; `home` is nobody else's."""

    name: str
    init: int
    home: Path

    @property
    def address(self) -> str:
        return ADDRESSES[self.name]

    def command(self, *words: object) -> list[str]:
        """What runs `words` on this machine, in the root of the repository."""
        return ["nsenter", f"--target={self.init}", "--all", f"--wdns={ROOT}", *map(str, words)]

    def environment(self, **given: str) -> dict[str, str]:
        """That of a new login, with the interpreter of the tests first."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "VERL_", "VLLM_"))}
        return ours | {"HOME": str(self.home)} | given

    def run(self, *words: object, timeout_s: float = 120, **given: str) -> subprocess.CompletedProcess:
        environment, options = self.environment(**given), {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.run(
            self.command(*words), env=environment, text=True, timeout=timeout_s, check=False, **options
        )

    def crash(self) -> None:
        """Off the net and then dead, so that nobody gets a last word from it."""
        assert self.run("ip", "link", "delete", CABLE).returncode == 0
        os.kill(self.init, signal.SIGKILL)


class Network:
    """Machines, and a cable between two of them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._holders = folder, []

    def boot(self, name: str) -> Machine:
        """A machine with an address and no cable. Nobody else sees what it mounts.

        The address is a bridge's, which stays when the other end of a cable is gone.
        """
        folder = self._folder / f"{name}.{len(self._holders)}"
        for made in ("home", "ray"):
            (folder / made).mkdir(parents=True)
        hosts = "".join(f"{address} {host}\n" for host, address in ADDRESSES.items())
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        Path("/tmp/ray").mkdir(exist_ok=True)
        mounts = (f"--bind {folder}/hosts /etc/hosts", f"--bind {folder}/ray /tmp/ray", "-t tmpfs none /dev/shm")
        start = [
            f"hostname {name}",
            *(f"mount {mount}" for mount in mounts),
            "ip link set lo up",
            f"ip link add {PORT} type bridge",
            f"ip addr add {ADDRESSES[name]}/24 dev {PORT}",
            f"ip link set {PORT} up",
            f"touch {folder}/up",
            "exec sleep infinity",
        ]
        holder = subprocess.Popen([*OWN, "sh", "-ec", "; ".join(start)])
        self._holders.append(holder)
        deadline = time.monotonic() + 60
        while not (folder / "up").exists():
            assert holder.poll() is None, f"{name} ended while it started"
            assert time.monotonic() < deadline, f"{name} did not start"
            time.sleep(0.05)
        [init] = psutil.Process(holder.pid).children()
        return Machine(name, init.pid, folder / "home")

    def connect(self, first: Machine, second: Machine) -> None:
        """Each is the other's way to the world: Ray takes the address of a machine from its route there."""
        one, two = (["name", CABLE, "netns", str(machine.init)] for machine in (first, second))
        subprocess.run(["ip", "link", "add", *one, "type", "veth", "peer", *two], check=True)
        for machine, other in ((first, second), (second, first)):
            for words in (
                f"link set {CABLE} master {PORT}",
                f"link set {CABLE} up",
                f"route replace default via {other.address}",
            ):
                done = machine.run("ip", *words.split())
                assert done.returncode == 0, done.stdout

    def end(self) -> None:
        """All machines, and whatever runs on them."""
        for holder in self._holders:
            holder.kill()
            holder.wait()


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    made = Network(folder)
    try:
        yield made
    finally:
        made.end()
