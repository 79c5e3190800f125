"""Where traces come from: JSON lines, parquet, and saved states, one trace at a time."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.exgrpo.checkpoint.errors import ExperienceStateError
from recipe.exgrpo.checkpoint.format import folder_of
from recipe.exgrpo.checkpoint.stored import Stored
from recipe.exgrpo.core.buffer import ExperienceBuffer, Trajectory
from recipe.exgrpo.experience.tokenizers import decoder, tokenizer_beside
from recipe.exgrpo.experience.traces import BadTrace, Columns, Place, Trace, parse

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
IMPORTED = "import"  # `policy` in the fingerprint of a state that nobody trained
BATCH = 256  # rows of a parquet file in memory
ONE_A_LINE = "a .jsonl file has one object on each line, in UTF-8"
MAX_LINE = 64 << 20  # bytes of a line: two million tokens with log-probs


class SourceError(ValueError):
    """A file or folder that holds no traces; the message names it and the reason."""


@dataclass(frozen=True)
class Source:
    """A file of traces, or a saved state; `traces` yields a BadTrace in the place of a row that is none."""

    path: Path
    columns: Columns = field(default_factory=Columns)

    def __post_init__(self) -> None:
        if self.path.is_dir():
            if folder_of(self.path) is None:
                raise SourceError(f"{self.path}: there is no experience state in this folder.")
        elif not self.path.name.endswith(SUFFIXES):
            raise SourceError(f"{self.path}: traces come as {', '.join(SUFFIXES)} or as a saved state.")
        elif not self.path.is_file():
            raise SourceError(f"{self.path}: there is no such file.")

    @property
    def name(self) -> str:
        """What traces are tagged with that have no source of their own."""
        if self.path.is_dir():
            return "/".join(self.path.resolve().parts[-2:])
        return self.path.name.removesuffix(".gz").rpartition(".")[0]

    def count(self) -> int:
        """Traces, for a progress bar."""
        if self.path.is_dir():
            return int(Stored.open(self.path).manifest["counts"]["trajectories"])
        if self.path.suffix == ".parquet":
            return _opened(self.path).metadata.num_rows
        return sum(1 for _ in _lines(self.path))

    def traces(self) -> Iterator[Trace | BadTrace]:
        """Raises SourceError or an ExperienceStateError where the source as a whole cannot be read."""
        if self.path.is_dir():
            yield from state_traces(self.path, self.name)
            return
        rows = _parquet_rows(self.path) if self.path.suffix == ".parquet" else _json_rows(self.path)
        place = None
        for place, row in rows:
            try:
                yield row if isinstance(row, BadTrace) else parse(row, place, self.columns)
            except BadTrace as bad:
                yield bad
        if place is None:
            raise SourceError(f"{self.path}: there is nothing in it.")


def state_traces(path: Path, name: str) -> Iterator[Trace]:
    """The trajectories of a saved state, every checksum compared; what a run rolled out itself is tagged with `name`.

    Their text, for a run with another tokenizer, is decoded with the tokenizer that was saved beside the state.
    """
    stored = Stored.open(path)
    buffer, beside = stored.buffer(), tokenizer_beside(stored.folder)
    decode = decoder(beside) if beside is not None else None
    ran = stored.fingerprint.get("policy") != IMPORTED
    for row in buffer.candidates().row.tolist():
        found = buffer.trajectory(row)
        source = name if ran and found.origin.source == "rollout" else found.origin.source
        text = decode(found.token_ids.tolist()) if decode else None
        yield trace_of(buffer, found, str(path), text, source, stored.fingerprint.get("tokenizer"))


def trace_of(
    buffer: ExperienceBuffer, found: Trajectory, file: str, text: str | None, source: str, tokenizer: str | None
) -> Trace:
    """A stored trajectory as a trace."""
    return Trace(
        Place(file, f"trajectory {found.row}"),
        question=found.question,
        text=text,
        token_ids=found.token_ids,
        log_probs=found.log_probs,
        mask=found.mask,
        tokenizer=tokenizer,
        prompt_hash=found.prompt_hash,
        source=source,
        behaviour=found.origin.behaviour,
        temperature=found.origin.temperature,
        tools=found.origin.tools,
        birth_step=found.birth_step,
        count=buffer.latest_count(found.question),
        group_size=buffer.group_size,
        provenance=found.provenance,
    )


def _json_rows(path: Path) -> Iterator[tuple[Place, Any]]:
    for number, line in _lines(path):
        place = Place(str(path), f"line {number}")
        yield place, _json_row(line, place)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, by number, of one that is too long its beginning. Raises SourceError where they end early."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                number, rest = number + 1, line
                while not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE)):
                    pass
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: cannot be read after line {number} ({error}).") from None


def _json_row(line: bytes, place: Place) -> dict | BadTrace:
    if len(line) == MAX_LINE:
        return place.bad(f"longer than {MAX_LINE >> 20} MB")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return place.bad(f"not readable as JSON ({error}); {ONE_A_LINE}")
    return row if isinstance(row, dict) else place.bad(f"not a JSON object; {ONE_A_LINE}")


def _opened(path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path}: cannot be read as parquet ({str(error).splitlines()[0]}).") from None


def _parquet_rows(path: Path) -> Iterator[tuple[Place, Any]]:
    import pyarrow as pa

    number = 0
    try:
        for batch in _opened(path).iter_batches(BATCH):
            for row in batch.to_pylist():
                number += 1
                yield Place(str(path), f"row {number}"), row
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{path}: cannot be read after row {number} ({str(error).splitlines()[0]}).") from None


__all__ = ["IMPORTED", "ExperienceStateError", "Source", "SourceError", "state_traces", "trace_of"]
