"""docs/paper_to_code.md: what it names exists, and what it calls a proof kills a fault of the file (tests/mutants.yaml)."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs/paper_to_code.md").read_text(encoding="utf-8")
FAULTS = yaml.safe_load((ROOT / "tests/mutants.yaml").read_text(encoding="utf-8"))
CODE = re.compile(r"`([^`]+)`")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in DOC.splitlines()
    if line.startswith("|") and "---" not in line
][1:]


def symbols(cell: str) -> list[tuple[str, str | None]]:
    """(file below recipe/exgrpo, symbol) for each symbol after a file's name in a cell; None for a file without any."""
    found, file = [], None
    for name in CODE.findall(cell):
        if name.endswith(".py"):
            file = name
            found.append((file, None))
        else:
            assert file, f"`{name}` belongs to no file"
            found.append((file, name))
    return found


def definitions(path: Path) -> set[str]:
    """Names defined in a module: functions, classes, and `Class.method`, methods by their own name as well."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def id_of(row: list[str]) -> str:
    return row[0].split(",")[0].split(":")[0]


@pytest.mark.parametrize("row", ROWS, ids=id_of)
def test_what_a_row_names_exists(row):
    assert len(row) == 4
    for file, symbol in symbols(row[1]) + symbols(row[2]):
        path = ROOT / "recipe/exgrpo" / file
        assert path.is_file(), file
        assert symbol is None or symbol in definitions(path), f"{file} `{symbol}`"
    proofs = CODE.findall(row[3])
    assert proofs
    assert all((ROOT / proof).is_file() for proof in proofs), proofs


@pytest.mark.parametrize("row", ROWS, ids=id_of)
def test_every_file_of_a_row_has_a_fault_that_the_rows_proof_kills(row):
    proofs = set(CODE.findall(row[3]))
    for file in {file for file, _ in symbols(row[1]) + symbols(row[2])}:
        tests = [test for fault in FAULTS if fault["file"] == f"recipe/exgrpo/{file}" for test in fault["tests"]]
        assert proofs & {test.partition("::")[0] for test in tests}, f"no fault of {file} is killed by {sorted(proofs)}"


def test_there_is_a_row_for_every_policy():
    from recipe.exgrpo.core.policies import POLICIES

    named = {symbol.partition(".")[0] for row in ROWS for _, symbol in symbols(row[1]) if symbol}
    own = {policy.__name__ for name, policy in POLICIES.items() if name != "on_policy"}
    assert own <= named


def test_there_is_a_method_for_every_policy():
    from recipe.exgrpo.core.policies import POLICIES

    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert [name for name in POLICIES if f"\n| `{name}` |" not in methods] == []
