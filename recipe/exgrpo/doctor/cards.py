"""The GPUs of this machine as `nvidia-smi` reports them. It is only asked, in CSV; nothing is set or reset."""

import csv
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recipe.exgrpo.checks.memory import USABLE
from recipe.exgrpo.checks.sizes import MIB

FIELDS = ("index", "uuid", "name", "memory.total", "memory.used", "driver_version", "compute_cap", "mig.mode.current")
LIMIT_S = 30


@dataclass(frozen=True)
class Card:
    """One GPU. `total` and `used` in bytes; `capability` such as 9.0, 0 where the driver is too old to say; `mig`: it is cut
    into instances, whose memory is not this."""

    index: int
    uuid: str
    name: str
    total: int
    used: int
    driver: str
    capability: float
    mig: bool

    @property
    def sold_as(self) -> float:
        """GB by which the card is known to the memory estimate: the table's size that it has 90 to 103 % of, else its own."""
        gib = self.total / (1024 * MIB)
        return next((size for size in USABLE if 0.9 * size <= gib <= 1.03 * size), round(gib, 1))


def query(fields: Sequence[str] = FIELDS) -> str:
    """What `nvidia-smi --query-gpu` answers. Raises OSError without the tool, subprocess.SubprocessError when it fails."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout


def read_cards(answer: str) -> list[Card]:
    """The cards of an answer to `query`; memory comes in MiB, what a driver does not know as "[N/A]"."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(answer.splitlines()) if row]
    return [
        Card(
            index=int(row[0]),
            uuid=row[1],
            name=row[2],
            total=int(row[3]) * MIB,
            used=int(row[4]) * MIB,
            driver=row[5],
            capability=float(row[6]) if row[6][:1].isdigit() else 0.0,
            mig=row[7] == "Enabled",
        )
        for row in rows
    ]


def visible(cards: Sequence[Card], env: Mapping[str, str] = os.environ) -> list[Card]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order: by index, or by the beginning of a uuid."""
    named = env.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return list(cards)
    wanted = [name.strip() for name in named.split(",") if name.strip()]
    return [card for name in wanted for card in cards if name == str(card.index) or _is_start(name, card.uuid)]


def _is_start(name: str, uuid: str) -> bool:
    return name.startswith("GPU-") and uuid.startswith(name)


def used_bytes(card: Card) -> float:
    """Memory that is in use on a card now, by whatever processes."""
    rows = (row.split(",") for row in query(("index", "memory.used")).splitlines())
    return next(float(used) * MIB for index, used in rows if int(index) == card.index)
