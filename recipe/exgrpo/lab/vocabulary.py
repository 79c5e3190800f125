"""A vocabulary of a few dozen pieces of text, matched longest first."""

import re
from collections.abc import Sequence

PAD, EOS, BOS = 0, 1, 2  # BOS opens the response


class Vocabulary:
    """Text to ids and back; the ids after the special ones follow the order of `pieces`."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces = ("", "", "", *dict.fromkeys(pieces))
        self._ids = {piece: i for i, piece in enumerate(self.pieces) if piece}
        self._pattern = re.compile("|".join(map(re.escape, sorted(self._ids, key=len, reverse=True))))

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; ValueError where no piece matches."""
        found = self._pattern.findall(text)
        if "".join(found) != text:
            raise ValueError(f"the vocabulary has no pieces for all of {text!r}")
        return [self._ids[piece] for piece in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first EOS; other special ids become the empty string."""
        ids = list(ids)
        return "".join(self.pieces[i] for i in (ids[: ids.index(EOS)] if EOS in ids else ids))
