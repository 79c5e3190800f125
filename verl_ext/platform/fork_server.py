"""Ray workers that start by fork: on CPU, most of a run's start-up is a dozen processes importing the same packages.

`start` forks a server off the driver, which imports the large packages once. Ray starts each worker through
`fork_client.py`, which hands arguments, environment and standard streams to the server, and the server forks. That is safe
as long as nothing but imports has run, and Ray itself, which reads its settings from the environment when it is imported, is
not among them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

# What verl's processes spend their start-up on and what does not import Ray; verl and vLLM do.
PRELOAD = (
    *("torch", "torch.distributed.fsdp", "torch.distributed.checkpoint", "torch._dynamo", "networkx", "tensordict"),
    *("transformers", "datasets", "peft", "accelerate", "fastapi", "aiohttp", "openai", "math_verify", "hydra"),
)
CLIENT = Path(__file__).with_name("fork_client.py")


def start(preload: tuple[str, ...] = PRELOAD) -> str:
    """Fork the server, which ends with this process, and return the command for Ray's runtime environment (`py_executable`).

    Raises:
        RuntimeError: Ray has been imported.
    """
    if "ray" in sys.modules:
        raise RuntimeError(
            "the fork server must be started before `import ray`: its workers would have Ray's settings of now."
        )
    folder = tempfile.mkdtemp(prefix="verl_fork_")  # mode 0700: nobody else may have processes started here
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen(64)
    alive, held = os.pipe()  # end of file on `alive`: this process has ended, however it did
    if os.fork() == 0:
        os.close(held)
        request = None
        try:
            request = _serve(listener, alive, preload)
        finally:
            if request is None:  # the server itself
                shutil.rmtree(folder, ignore_errors=True)
                os._exit(0)
        _become_worker(*request)
    listener.close()
    os.close(alive)
    return f"{sys.executable} -I -S {CLIENT} {folder}/socket"


def _serve(listener: socket.socket, alive: int, preload: tuple[str, ...]) -> tuple[dict, list[int]] | None:
    """Fork for every request until `alive` ends. Returns the request in each fork, None in the server."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, with which the server ends
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leaves no zombies
    with open(os.devnull, "r+b") as nothing:  # nor should what packages print when imported reach the driver's console
        for number in range(3):
            os.dup2(nothing.fileno(), number)
    for module in preload:
        if select.select([alive], [], [], 0)[0]:
            return None
        with contextlib.suppress(Exception):  # whoever needs it will raise the error where it can be seen
            importlib.import_module(module)
    if "ray" in sys.modules:
        return None  # by a version of a package that we do not know; workers start by themselves
    gc.collect()
    gc.freeze()  # the collector would write to every object and unshare its page
    while alive not in select.select([listener, alive], [], [])[0]:
        connection, _ = listener.accept()
        with connection:
            request, streams = _receive(connection)
        if os.fork() == 0:
            listener.close()
            os.close(alive)
            return request, streams
        for stream in streams:
            os.close(stream)
    return None


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as stream:
        return json.loads(stream.read()), streams


def _become_worker(request: dict, streams: list[int]) -> None:
    """Run the script of the request as its own interpreter would, and exit."""
    os.setpgid(0, 0)  # a terminal sends Ctrl-C to the driver's process group, and vLLM's engines would end by it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(int.from_bytes(os.urandom(4)))  # Python's own generator has reseeded itself
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit(0)
