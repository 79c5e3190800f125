"""Shared memory that killed processes leave behind: vLLM's message queues, `/dev/shm/psm_*`, which nothing else removes."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def tidied(folder: Path = Path("/dev/shm"), proc: Path = Path("/proc")) -> Iterator[None]:
    """Remove, after the block, segments of Python's (`psm_*`) that were made in it, are ours, and nobody maps any more."""
    since = time.time()
    try:
        yield
    finally:
        made = [path for path in folder.glob("psm_*") if _made_by_us(path, since)]
        for path in sorted(set(made) - (_mapped(proc) if made else set())):
            path.unlink(missing_ok=True)
            logger.debug("%s removed", path)


def _made_by_us(path: Path, since: float) -> bool:
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_uid == os.getuid() and found.st_ctime >= since
    return False


def _mapped(proc: Path) -> set[Path]:
    """Files that a process maps into its memory; of other users' processes, which cannot map ours, nothing is known."""
    found = set()
    for maps in proc.glob("[0-9]*/maps"):
        with suppress(OSError):
            fields = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
            found |= {Path(parts[5]) for parts in fields if len(parts) == 6 and "/psm_" in parts[5]}
    return found
