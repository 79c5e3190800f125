"""What can be wrong with experience at rest."""

from pathlib import Path


class ExperienceStateError(Exception):
    """Experience state cannot be written or used; `file` is the path concerned and `reason` a sentence."""

    def __init__(self, file: str | Path, reason: str):
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = Path(file), reason

    def __reduce__(self):
        return type(self), (self.file, self.reason)


class MissingState(ExperienceStateError):
    """A folder or file is not there."""


class CorruptState(ExperienceStateError):
    """A file is truncated, altered, or contradicts the rest."""


class ForeignState(ExperienceStateError):
    """Not experience state of this project."""


class NewerState(ExperienceStateError):
    """Written by a later version of this project."""


class MismatchedState(ExperienceStateError):
    """Intact, but collected by a run that differs from this one in a way that nobody has accepted."""


class UnsavedState(ExperienceStateError):
    """Saving failed; what was saved before is untouched."""
