"""The paper's results as they are written down, and as `exgrpo evaluate` hands them on."""

import pytest

from recipe.exgrpo.presets.paper_results import paper_results
from verl_ext.evaluation.published import Published

PAPER = Published.from_mapping(paper_results())


def test_paper_rows_agree_with_their_averages():
    paper = paper_results()
    for backbone in paper["backbones"].values():
        for row in backbone["rows"]:
            assert (
                set(row["scores"]) == set(paper["titles"]) == {n for group in paper["groups"].values() for n in group}
            )
            for group, names in paper["groups"].items():
                mean = sum(row["scores"][name] for name in names) / len(names)
                assert row["averages"][group] == pytest.approx(mean, abs=0.1)  # as printed: it rounds either way
    assert paper["backbones"]["qwen2.5-math-7b"]["rows"][-1]["scores"]["aime24"] == 31.6
    assert len(paper["backbones"]) == 6


@pytest.mark.parametrize(
    ("model", "backbone"),
    [
        ("Qwen/Qwen2.5-Math-1.5B", "qwen2.5-math-1.5b"),
        ("Elliott/Qwen2.5-Math-7B-16k-think", "qwen2.5-math-7b"),
        ("Elliott/LUFFY-Qwen-Math-7B-Zero", "luffy"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b-instruct"),
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("data/toy/model", None),
    ],
)
def test_backbone_is_guessed_from_the_name(model, backbone):
    assert PAPER.guess_backbone(model) == backbone
