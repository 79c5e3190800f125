"""docs/rewards.md: its rule runs, its configuration is the manager's, its example rows have the values it says."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from verl_ext.rewards import compute_score, rules

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)[1]


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
    ],
)
def test_examples(answer, gold, score):
    assert compute_score("math500", f"\\boxed{{{answer}}}", gold)["score"] == score
