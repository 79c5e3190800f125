"""Run folders as verl and ExGRPO leave them, with files of a few bytes: what is looked at is names, ends and sizes."""

import zipfile
from pathlib import Path

from recipe.exgrpo.runs.folder import KINDS, TRACKER


def save(root: Path, step: int, ranks: int = 1, track: bool = True) -> Path:
    """`global_step_<step>` of a run on `ranks` ranks, whole; tracked as the newest."""
    folder = root / f"global_step_{step}"
    (folder / "actor").mkdir(parents=True)
    for kind in KINDS.values():
        for rank in range(ranks):
            archive(folder / "actor" / f"{kind}_world_size_{ranks}_rank_{rank}.pt")
    archive(folder / "data.pt")
    if track:
        (root / TRACKER).write_text(str(step))
    return folder


def archive(path: Path) -> None:
    """A zip archive, as torch.save writes."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x00" * 2000)


def cut(path: Path) -> None:
    """Leave the first half of a file, as a full disk does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
