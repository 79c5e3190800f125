"""One name for one thing in all commands: what is written goes to `--out`."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [*sorted((ROOT / "recipe/exgrpo/cli").glob("*.py")), *sorted((ROOT / "data").glob("*.py"))]


def options(path: Path) -> list[str]:
    """Every option that a file declares."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    first = [node.args[0].value for node in calls if node.args and isinstance(node.args[0], ast.Constant)]
    return [name for name in first if isinstance(name, str) and re.fullmatch(r"--[a-z-]+", name)]


def test_the_options_are_found():
    assert {"--out", "--data", "--source"} <= {name for path in COMMANDS for name in options(path)}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_written_goes_to_out(path):
    assert [name for name in options(path) if re.match(r"--(out.+|dest|target|save|write)", name)] == []


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_documents_say_out_too(page):
    assert re.findall(r"--output\b", page.read_text(encoding="utf-8")) == []


def test_data_of_ones_own_have_a_source_wherever_they_are_mentioned():
    """Without --source, --dataset custom is refused."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        custom = [line for line in text.splitlines() if "prepare_train.py --dataset custom" in line]
        assert [line for line in custom if "--source" not in line] == [], page
