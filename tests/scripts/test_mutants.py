"""The harness of faults: what it calls killed, survived and broken on a tree of a few lines; the real list can be planted."""

import ast
import json
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import mutants  # noqa: E402

ADD = "def add(a, b):\n    return a + b\n\n\ndef twice(a):\n    return 2 * a\n"
TESTS = """
import pytest
from product import add, twice

@pytest.fixture
def sum_of_two():
    return 4 // add(1, 1)

def test_add():
    assert add(1, 2) == 3

def test_twice_of_zero():
    assert twice(0) == 0

def test_with_fixture(sum_of_two):
    assert sum_of_two

def test_never_ends():
    while add(0, 0):
        pass
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tree of a module and its tests, in place of this repository's."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "product.py").write_text(ADD)
    (root / "test_product.py").write_text(TESTS)
    (root / "outputs").mkdir()
    monkeypatch.setattr(mutants, "ROOT", root)
    monkeypatch.setattr(mutants, "LIMIT_S", 20)
    return root


def fault(now: str, test: str, was: str = "return a + b", name: str = "a fault", file: str = "product.py") -> dict:
    return {"name": name, "file": file, "was": was, "now": now, "tests": [f"test_product.py::{test}"]}


def run(tree: Path, capsys, *faults: dict, words=()) -> tuple[int, list[tuple[str, str]]]:
    """Exit code, and (name, outcome) of each fault."""
    path = tree.parent / "list.yaml"
    path.write_text(yaml.safe_dump(list(faults)))
    code = mutants.main([*words, "--list", str(path), "--jobs", "1", "--json"])
    out = capsys.readouterr().out
    return code, [(v["name"], v["outcome"]) for v in json.loads(out)] if out else []


@pytest.mark.parametrize(
    ("planted", "code", "outcome"),
    [
        (fault("return a - b", "test_add"), 0, "killed"),
        (fault("return 3 * a", "test_twice_of_zero", was="return 2 * a"), 1, "survived"),
        (fault("return a -", "test_add"), 2, "broken"),  # its tests cannot be collected
        (fault("return a - b", "test_add", was="return a * b"), 2, "broken"),  # not there
        (fault("a, b", "test_add", was="a"), 2, "broken"),  # there more than once
        (fault("return a - b", "test_add", file="no_product.py"), 2, "broken"),
        (fault("return a - b", "test_with_fixture"), 2, "broken"),  # an error in a fixture is no assertion
    ],
    ids=["killed", "survived", "syntax", "not there", "twice", "no file", "fixture"],
)
def test_outcomes(tree, capsys, planted, code, outcome):
    assert run(tree, capsys, planted) == (code, [("a fault", outcome)])
    assert (tree / "product.py").read_text() == ADD  # the fault was in a copy


def test_tests_that_do_not_end_say_nothing(tree, capsys, monkeypatch):
    """A busy machine is slow as well."""
    monkeypatch.setattr(mutants, "LIMIT_S", 4)
    assert run(tree, capsys, fault("return 1", "test_never_ends")) == (2, [("a fault", "broken")])


def test_one_fault_does_not_stay_for_the_next(tree, capsys):
    faults = [
        fault("return a - b", "test_add", name="first"),
        fault("return 3 * a", "test_add", was="return 2 * a", name="second"),
    ]
    assert run(tree, capsys, *faults) == (1, [("first", "killed"), ("second", "survived")])
    assert run(tree, capsys, *faults, words=["first"]) == (0, [("first", "killed")])
    assert len(run(tree, capsys, *faults, words=["product.py"])[1]) == 2


def test_tests_that_fail_without_the_fault_prove_nothing(tree, capsys):
    (tree / "test_product.py").write_text(TESTS.replace("== 3", "== 4"))
    assert run(tree, capsys, fault("return a - b", "test_add")) == (2, [])


@pytest.mark.parametrize(
    "entries",
    [
        [fault("x", "test_add"), fault("y", "test_add")],
        [fault("return a + b", "test_add")],
        [fault("x", "test_add") | {"tests": []}],
        [{"name": "no more"}],
        [fault("x", "test_add") | {"more": 1}],
    ],
    ids=["name twice", "no change", "no test", "keys missing", "key unknown"],
)
def test_a_list_that_makes_no_sense_is_refused(tree, entries):
    path = tree.parent / "list.yaml"
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(ValueError, match=r"list\.yaml"):
        mutants.load(path)


# ---- the list of this repository


REAL = mutants.load(ROOT / "tests/mutants.yaml")


def test_there_are_enough_of_them():
    assert len(REAL) >= 45


@pytest.mark.parametrize("mutant", REAL, ids=lambda mutant: mutant.name)
def test_every_fault_can_be_planted_and_has_its_tests(mutant):
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.was) == 1, f"the text stands {source.count(mutant.was)} times in {mutant.file}"
    planted = source.replace(mutant.was, mutant.now)
    if mutant.file.endswith(".yaml"):
        assert yaml.safe_load(planted) != yaml.safe_load(source)
    else:
        compile(planted, mutant.file, "exec")
    for test in mutant.tests:
        path, _, name = test.partition("::")
        functions = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
        assert not name or name.partition("[")[0] in functions, test
