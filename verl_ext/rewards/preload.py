"""Imported once by the fork server, so that every grading worker starts with Math-Verify loaded and warm."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from functools import wraps
from multiprocessing import spawn
from types import TracebackType

from pebble.pool.process import WORKERS_NAME

from verl_ext.rewards.equivalence import grade_answer, grade_text


def _unless_grading(fixup: Callable[[str], None]) -> Callable[[str], None]:
    """Grading workers need nothing of the parent's `__main__`, which may import Ray, torch or a whole trainer."""

    @wraps(fixup)
    def skip(main: str) -> None:
        if multiprocessing.current_process().name == WORKERS_NAME:
            sys.excepthook = _ignore_late_start
        else:
            fixup(main)

    return skip


def _ignore_late_start(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    """A worker that is still starting when its pool is closed finds the pool's locks gone: nothing to report."""
    if kind is not FileNotFoundError:
        sys.__excepthook__(kind, value, trace)


spawn._fixup_main_from_name = _unless_grading(spawn._fixup_main_from_name)
spawn._fixup_main_from_path = _unless_grading(spawn._fixup_main_from_path)

# The first parses build grammar tables, the first simplification imports a good part of SymPy: every worker inherits it.
_WARMING = (
    r"\frac{1}{2}",
    r"(3, \frac{\pi}{2})",
    "x^2+y^2=1",
    r"\{1,2\}",
    "[1,2)",
    "0.5",
    "3 hours",
    r"\sqrt{2}",
    "x>1",
)
for _answer in _WARMING:
    grade_answer(_answer + " ", _answer)
for _answer, _gold in (("x + 1", "x + 2"), ("x^2+x", "x(x+1)"), (r"\frac{\sqrt{8}}{2}", r"\sqrt{2}"), ("x<0", "x>1")):
    grade_answer(_answer, _gold)
grade_text("The answer is 42.", "42")
