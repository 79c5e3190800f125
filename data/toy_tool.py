"""The tool task's calculator as a verl function tool (`rollout.multi_turn.function_tool_path=data/toy_tool.py`)."""

import sys
from pathlib import Path

from verl.tools.function_tool import function_tool

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # verl loads the file by its path, in every rollout worker

from data import tool_task


@function_tool
def calculate(expression: str) -> str:
    """One operation modulo 100.

    Args:
        expression: two whole numbers of at most two digits with +, - or * between them, as in 47*62.
    """
    return tool_task.calculate(expression)
