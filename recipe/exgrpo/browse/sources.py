"""What a page is made from: a run folder or a saved state, read as it is now, while the run may go on."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from recipe.exgrpo.checkpoint.errors import ExperienceStateError, MissingState
from recipe.exgrpo.checkpoint.format import MANIFEST, folder_of
from recipe.exgrpo.checkpoint.stored import Stored
from recipe.exgrpo.core.buffer import ExperienceBuffer
from recipe.exgrpo.core.buffer.state import Snapshot
from recipe.exgrpo.runs import history
from recipe.exgrpo.runs.folder import checkpoints, to_look_at
from recipe.exgrpo.runs.metrics import FILE, RunMetrics, read_run


@dataclass(frozen=True)
class Source:
    """A run's folder (None: a state that stands alone), a saved experience (None: none yet), and remarks for the reader."""

    run: Path | None
    experience: Path | None
    remarks: tuple[str, ...] = ()

    @classmethod
    def find(cls, path: Path) -> "Source":
        """What `path` is: a run folder, its `global_step_N`, or an `experience` folder.

        Raises FileNotFoundError where it is none of these.
        """
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a folder; name a run's folder, a global_step_N or its experience.")
        if (found := folder_of(path)) is not None:
            parents = (found.resolve().parent, found.resolve().parent.parent)
            return cls(next((folder for folder in parents if _is_run(folder)), None), found)
        looked, remarks = to_look_at(path)
        experience = next(filter(None, map(folder_of, looked)), None)
        if not _is_run(path) and experience is None:
            raise FileNotFoundError(
                f"{path} is neither a run's folder ({FILE}, global_step_N) nor saved experience ({MANIFEST})."
            )
        return cls(path if _is_run(path) else None, experience, tuple(remarks))

    @property
    def tokenizer(self) -> Path | None:
        """The tokenizer.json that was saved beside the experience."""
        found = self.experience and self.experience.resolve().parent / "actor" / "huggingface" / "tokenizer.json"
        return found if found and found.is_file() else None

    def stamp(self) -> str:
        """Changes when there is something new to show."""
        files = [self.run / name for name in (FILE, history.FILE)] if self.run else []
        files += [self.experience / MANIFEST] if self.experience else []
        return " ".join(f"{s.st_size}.{s.st_mtime_ns}" for s in (file.stat() for file in files if file.is_file()))


def _is_run(folder: Path) -> bool:
    return (folder / FILE).is_file() or bool(checkpoints(folder) and (folder / "record").is_dir())


@dataclass(frozen=True)
class Content:
    """A source read once."""

    source: Source

    @cached_property
    def run(self) -> RunMetrics | None:
        """Metrics, none before the first finished step; ValueError where they are damaged."""
        folder = self.source.run
        if folder is None or not (folder / FILE).is_file() or not (folder / FILE).read_bytes().count(b"\n"):
            return None
        return read_run(folder)

    @cached_property
    def steps(self) -> list[dict]:
        """Lines of history.jsonl."""
        path = self.source.run and self.source.run / history.FILE
        return list(history.read_history(path)) if path and path.is_file() else []

    @cached_property
    def stored(self) -> Stored | None:
        return Stored.open(self.source.experience) if self.source.experience else None

    @cached_property
    def buffer(self) -> ExperienceBuffer | None:
        """The saved buffer, every byte checked; raises an ExperienceStateError."""
        return self.stored.buffer() if self.stored else None

    @cached_property
    def frozen(self) -> Snapshot | None:
        return self.buffer.snapshot() if self.buffer else None

    @property
    def step(self) -> int:
        """The step that ages are counted from: the state's, else the newest that is known."""
        if self.stored is not None and self.stored.step is not None:
            return self.stored.step
        born = self.frozen.rows["row_birth_step"].max(initial=0) if self.frozen else 0
        return max(int(born), self.run.last_step if self.run else 0)


def read(path: Path) -> Content:
    """The content of `path` now.

    A checkpoint may be replaced and pruned between two looks at it while a run goes on: the one that has come is then read.
    Raises FileNotFoundError, ValueError or ExperienceStateError.
    """
    content = Content(Source.find(path))
    try:
        _ = content.buffer
    except MissingState:
        newer = Source.find(path)
        if newer.experience == content.source.experience:
            raise
        content = Content(newer)
        _ = content.buffer
    return content


READING = (ExperienceStateError, ValueError, OSError)
