"""Every metric has one sentence, in the code and in docs/metrics.md; tests/e2e/test_replay.py looks at what a real run logs."""

from pathlib import Path

import pytest

from recipe.exgrpo.cli.main import main
from recipe.exgrpo.core.config import ExGRPOConfig
from recipe.exgrpo.core.policies import POLICIES, make_policy
from recipe.exgrpo.core.policies.metrics import METRICS
from recipe.exgrpo.report.glossary import OURS, VERL, markdown, sentence_of

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def test_the_document_is_the_generated_one():
    assert DOCUMENT.read_text(encoding="utf-8") == markdown()


@pytest.mark.parametrize("policy", POLICIES)
def test_all_that_a_policy_reports_is_described_and_all_of_it_is_reported(policy):
    reported = make_policy(ExGRPOConfig(policy=policy), 4).metrics(1)
    assert set(METRICS) <= set(reported)
    assert [name for name in reported if sentence_of(f"experience/{name}") is None] == []


def test_sentences_are_sentences():
    for name, text in (OURS | VERL).items():
        assert text.endswith("."), name
        assert "|" not in text, name


def test_a_name_nobody_described_has_no_sentence():
    assert sentence_of("experience/nonsense") is None
    assert sentence_of("timing_s/gen") == VERL["timing_s/*"]
    assert sentence_of("timing_s/experience") == OURS["timing_s/experience"]  # ours come before verl's patterns


def test_the_command_finds_by_word(capsys):
    assert main(["metrics", "retired"]) == 0
    assert "experience/retired_questions" in capsys.readouterr().out
    assert main(["metrics", "zzzz"]) == 1
    assert main(["metrics", "--markdown"]) == 0
    assert capsys.readouterr().out.endswith(markdown())
