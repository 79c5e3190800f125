"""Tokens for the page: what each id stands for as bytes, and trajectories in chunks that a browser unpacks on demand."""

import base64
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from recipe.exgrpo.core.buffer.state import Snapshot, spans

CHUNK_TOKENS = 1 << 16
OTHERS = 65535  # stands for a log-prob of a token that the model did not write
PER_NAT = 1000  # log-probs are kept as whole numbers of -0.001 nats
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Chunk:
    """Trajectories at positions `first` <= i < `end` of those shown, one after the other, prompt first."""

    first: int
    end: int
    data: str  # base64 of zlib of uint32 ids (little-endian, of `Words`) and then uint16 log-probs


class Words:
    """Token ids by a number of their own, in order of appearance, and their bytes."""

    def __init__(self, tokenizer: Path | None) -> None:
        self.tokenizer = tokenizer and Tokenizer.from_file(str(tokenizer))
        self.ids = np.empty(0, np.int64)

    def numbers(self, ids: np.ndarray) -> np.ndarray:
        """The numbers of `ids`, uint32; new ids get new ones."""
        new = np.setdiff1d(ids, self.ids)
        self.ids = np.concatenate([self.ids, new])
        order = np.argsort(self.ids, kind="stable")
        return order[np.searchsorted(self.ids, ids, sorter=order)].astype("<u4")

    def texts(self) -> list[str]:
        """The bytes of every id by its number, each byte as the character of its value (latin-1)."""
        if self.tokenizer is None:
            return [f"⟨{i}⟩".encode().decode("latin-1") for i in self.ids.tolist()]
        spell = speller(self.tokenizer)
        return [spell(i).decode("latin-1") for i in self.ids.tolist()]


def speller(tokenizer: Tokenizer):
    """A function from an id to the bytes that it stands for in the middle of a text."""
    decoder = json.loads(tokenizer.to_str())["decoder"]
    added = {i: token.content.encode() for i, token in tokenizer.get_added_tokens_decoder().items()}
    byte_level = "ByteLevel" in json.dumps(decoder)
    bytes_of = byte_alphabet() if byte_level else {}

    def spell(i: int) -> bytes:
        piece = tokenizer.id_to_token(i)
        if i in added or piece is None:
            return added.get(i, f"⟨{i}⟩".encode())
        if byte_level:
            return b"".join(bytes_of.get(character, character.encode()) for character in piece)
        if match := BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return (piece.replace("▁", " ") + ("" if decoder else " ")).encode()

    return spell


def byte_alphabet() -> dict[str, bytes]:
    """The characters that byte-level tokenizers write bytes as, read off the library's own encoder."""
    found = {}
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    # Every byte of UTF-8 occurs in one of these: one to two bytes, then the first of each three and four.
    for code in [
        *range(0x800),
        *range(0x800, 0xD800, 0x800),
        *range(0xE000, 0x10000, 0x1000),
        *range(0x10000, 0x110000, 0x10000),
    ]:
        text = chr(code)
        written = "".join(piece for piece, _ in encode(text))
        found |= {c: bytes([b]) for c, b in zip(written, text.encode(), strict=True)}
    return found


def chunks(frozen: Snapshot, at: np.ndarray, words: Words, budget: int) -> Iterator[Chunk]:
    """Chunks of the trajectories at positions `at`, from the last one backwards, until `budget` bytes are passed."""
    if not len(at):
        return
    ends = np.cumsum(spans(frozen.rows)[at])
    cuts = np.flatnonzero(np.diff(ends // CHUNK_TOKENS)) + 1
    starts = [0, *cuts.tolist()]
    for first, end in reversed(list(zip(starts, [*starts[1:], len(at)], strict=True))):
        ids, log_probs = frozen.tokens(at[first:end])
        chunk = Chunk(first, end, packed(words.numbers(ids), log_probs))
        budget -= len(chunk.data)
        if budget < 0:
            return
        yield chunk


def packed(numbers: np.ndarray, log_probs: np.ndarray) -> str:
    """The data of a `Chunk`."""
    own = ~np.isnan(log_probs)
    steps = np.rint(-np.where(own, log_probs, 0).astype(np.float64) * PER_NAT).clip(0, OTHERS - 1)
    raw = numbers.tobytes() + np.where(own, steps, OTHERS).astype("<u2").tobytes()
    return base64.b64encode(zlib.compress(raw, 6)).decode()
