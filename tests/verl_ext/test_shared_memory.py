"""Shared memory that a killed process left is removed; what somebody maps, or was there before, is not."""

import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

from verl_ext.platform.shared_memory import tidied

# As vLLM does: the process is killed before it can unlink, and its tracker knows nothing of the segment.
LEAVE = """
import os, sys
from multiprocessing import resource_tracker, shared_memory
segment = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(segment._name, "shared_memory")
print(segment.name, flush=True)
if sys.argv[1] == "die":
    os.kill(os.getpid(), 9)
sys.stdin.read()
"""


def start(how: str) -> tuple[subprocess.Popen, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVE, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, Path("/dev/shm") / process.stdout.readline().strip()


def test_what_a_killed_process_left_goes_and_what_a_living_one_maps_stays():
    earlier, old = start("die")
    earlier.wait()
    time.sleep(0.05)
    try:
        with tidied():
            dead, orphan = start("die")
            living, mapped = start("live")
            dead.wait()
            mine = shared_memory.SharedMemory(create=True, size=4096)
        assert not orphan.exists()
        assert mapped.exists()
        assert Path("/dev/shm", mine.name).exists()
        assert old.exists()
        living.kill()
        living.wait()
        mine.close()
        mine.unlink()
    finally:
        old.unlink(missing_ok=True)
        mapped.unlink(missing_ok=True)
