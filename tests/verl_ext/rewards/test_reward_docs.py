"""docs/rewards.md: its rule runs, its configuration is the manager's, its example rows have the values it says."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from answer_kinds import RIGHT, WRONG
from math_verify import parse, verify

from verl_ext.rewards import compute_score, rules

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)[1]


# Kind in the document -> (kind among the wrong answers, among the right ones) of answer_kinds.py.
KINDS = {
    "tiny exact numbers": ("tiny exact numbers", "exact numbers"),
    "adjacent numbers": ("adjacent numbers", "adjacent numbers"),
    "letters as a product": ("letters as a product", "letters"),
    "order, multiplicity": ("order or multiplicity", "order"),
    "subscript, unit, ratio": ("subscript, unit or ratio", "subscript, unit or ratio"),
    "decoration, chains": ("decoration and chains", "decoration"),
    "mixed and spaced numbers": ("mixed and spaced numbers", "mixed and spaced numbers"),
    "Unicode": ("Unicode", "Unicode"),
    "notation": ("notation", "notation"),
    "others": ("further", "as models write them"),
}


def test_the_counts_are_of_the_tables_as_they_are():
    """Sizes, and sums of each column; what Oat says was measured, and cannot be here: it is no dependency."""
    found = re.findall(r"^\| ([^|]+) \| (\d+) of (\d+) \| (\d+) \| (\d+) of (\d+) \| (\d+) \|$", DOCUMENT, re.MULTILINE)
    rows = {kind: tuple(map(int, numbers)) for kind, *numbers in found}
    together = rows.pop("together")
    assert {kind: (row[1], row[4]) for kind, row in rows.items()} == {
        kind: (len(WRONG[wrong]), len(RIGHT[right])) for kind, (wrong, right) in KINDS.items()
    }
    assert tuple(map(sum, zip(*rows.values(), strict=True))) == together


@pytest.mark.slow
def test_what_bare_math_verify_says():
    """As its README uses it: the gold answer between dollars, the answer in a box."""
    column = dict(re.findall(r"^\| ([^|]+) \| (\d+) of \d+ \|.*$", DOCUMENT, re.MULTILINE))
    refused = dict(re.findall(r"^\| ([^|]+) \| \d+ of \d+ \| \d+ \| (\d+) of", DOCUMENT, re.MULTILINE))
    for kind, (wrong, right) in KINDS.items():
        assert sum(says_equal(*pair) for pair in WRONG[wrong]) == int(column[kind]), kind
        assert sum(not says_equal(*pair) for pair in RIGHT[right]) == int(refused[kind]), kind


def says_equal(answer: str, gold: str) -> bool:
    return verify(parse(f"${gold}$"), parse(f"so \\boxed{{{answer}}}."))


def test_the_rule_of_your_own(monkeypatch, tmp_path):
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    monkeypatch.setitem(sys.modules, "my_rules", None)
    monkeypatch.delitem(sys.modules, "my_rules")
    (tmp_path / "my_rules.py").write_text(block("python"))
    monkeypatch.syspath_prepend(tmp_path)
    options = {"rules_module": "my_rules"}
    assert compute_score("palindromes_short", r"\boxed{abba}", "xxxx", **options)["score"] == 1.0
    assert compute_score("palindromes", r"\boxed{abca}", "xxxx", **options)["score"] == 0.0
    assert compute_score("palindromes", "abba", "xxxx", **options)["score"] == 0.0


@pytest.mark.verl
def test_the_manager_is_where_the_document_says():
    from verl.utils.import_utils import load_extern_object

    from verl_ext.rewards.manager import RewardManager

    settings = yaml.safe_load(block("yaml"))["reward"]["reward_manager"]
    assert settings["source"] == "importlib"
    assert load_extern_object(settings["module"]["path"], settings["name"]) is RewardManager


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("2.6667", "8/3", 1.0),
        (r"12\,345", "12345", 1.0),
        ("THT", "HTT", 0.0),
        ("5", r"4 \text{ or } 5", 0.0),
        (r"144 \approx 145", "145", 0.0),
        ("60 minutes", "1 hour", 1.0),
        ("0.28", r"28\%", 1.0),
        ("5 oranges", "5 apples", 0.0),
        ("yx", "xy", 0.0),
        ("0", "R^2 - r^2", 0.0),
        (r"5\text{ cm}", r"5\text{ cm}^2", 0.0),
        ("12'345", "12345", 1.0),
        ("0.333...", "1/3", 1.0),
        (r"\{x \mid x > 2\}", "x > 2", 1.0),
        ("about 5", "5", 1.0),
    ],
)
def test_examples(answer, gold, score):
    assert compute_score("math500", f"\\boxed{{{answer}}}", gold)["score"] == score
