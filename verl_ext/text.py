"""What commands write: files that appear whole or not at all, and text of a model that a terminal must not obey."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipe.exgrpo.checkpoint.tensors import sync_folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write; flushed to the disk, it takes `path`'s place once the block is left without an exception."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        yield new
        with open(new, "rb") as file:
            os.fsync(file.fileno())
        os.replace(new, path)
        sync_folder(path.parent)
    finally:
        new.unlink(missing_ok=True)


def printable(text: str, keep: str = "\n\t") -> str:
    """Text with every control character spelled out but those in `keep` (line breaks and tabs)."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Text for a cell or a heading: every control character spelled out."""
    return printable(text, keep="")
