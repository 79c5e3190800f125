"""Ray's `py_executable` on CPU: ask the fork server for a worker. `python -I -S fork_client.py SOCKET SCRIPT ARGUMENT...`.

A script of its own, of the standard library only, because it runs before every worker.
"""

import json
import os
import signal
import socket
import sys


def ask(path: str, argv: list[str]) -> None:
    """Send the server at `path` what makes a process: arguments, environment, folder, blocked signals, standard streams.

    Raises:
        OSError: there is no server.
    """
    blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
    request = {"argv": argv, "env": dict(os.environ), "cwd": os.getcwd(), "blocked": blocked}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [b"+"], [0, 1, 2])
        connection.sendall(json.dumps(request).encode())


if __name__ == "__main__":
    try:
        ask(sys.argv[1], sys.argv[2:])
    except OSError:  # the server has died, or is on another node: start the worker as Ray would
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
