"""`exgrpo config`: the three columns, what a command line changes, the resolved configuration, refusals."""

import pytest
import yaml

from recipe.exgrpo.cli.main import main

TITLES = ("key", "paper's text", "released script", "ours", "why")


@pytest.fixture
def rows(capsys):
    """rows(*arguments) -> (key -> cells of the three columns and the reason, all that was printed)."""

    def run(*arguments: str) -> tuple[dict[str, list[str]], str]:
        assert main(["config", *arguments]) == 0
        printed = capsys.readouterr().out
        found: dict[str, list[str]] = {}
        key = ""
        for line in printed.partition("in neither, changed here")[0].splitlines():
            if line.startswith("│"):
                cells = [cell.strip() for cell in line.strip("│").split("│")]
                key = cells[0] or key  # a cell that goes on in the next line
                found[key] = [" ".join(both).strip() for both in zip(found.get(key, [""] * 4), cells[1:], strict=True)]
        return found, printed

    return run


def test_the_three_columns_of_the_main_run(rows):
    found, printed = rows("scripts/qwen2.5-math-7b_exgrpo.sh")
    assert all(title in printed for title in TITLES)
    assert found["exgrpo.question.sigma_unit"][:3] == [
        "accuracy (Alg. 2)",
        "count (weighted_bucket_sampler.py)",
        "count",
    ]
    paper, released, ours, why = found["exgrpo.loss.fresh_clip"]
    assert (paper, released, ours) == ("never (Table 4, App. D.1, D.4)", "before_replay", "always")
    assert "Eq. 4" in why
    assert found["actor_rollout_ref.rollout.tensor_model_parallel_size"] == ["-", "2", "2", ""]
    assert found["trainer.save_freq"] == ["-", "50", "50", ""]


def test_what_all_three_have_is_counted_and_printed_on_demand(rows):
    few, printed = rows("scripts/qwen2.5-math-7b_exgrpo.sh")
    every, _ = rows("scripts/qwen2.5-math-7b_exgrpo.sh", "--all")
    assert "exgrpo.loss.beta" not in few
    assert every["exgrpo.loss.beta"] == ["0.1 (Eq. 4)", "0.1", "0.1", ""]
    assert f"{len(every) - len(few)} more settings are the same in all three" in printed
    assert set(few) < set(every)


def test_a_change_stands_beside_what_is_shipped(rows):
    found, _ = rows("scripts/qwen2.5-math-1.5b_exgrpo.sh", "exgrpo.rho=0.3")
    assert found["exgrpo.rho"] == ["0.5 (Table 4, App. D)", "0.5", "0.3", "changed here; shipped: 0.5"]
    assert "widened" in found["actor_rollout_ref.model.path"][3]


def test_the_baseline_has_no_rows_of_a_method_that_it_does_not_use(rows):
    found, _ = rows("scripts/qwen2.5-math-7b_on_policy.sh")
    assert "exgrpo.question.sigma_unit" not in found


def test_an_ablation_is_named_with_its_table(rows):
    found, printed = rows("scripts/ablations/no_question_selection.sh")
    assert printed.startswith("qwen2.5-math-7b / exgrpo / no_question_selection: exgrpo.question.weighting=uniform\n")
    assert found["exgrpo.question.weighting"][:3] == ["uniform (Table 6)", "-", "uniform"]


def test_the_released_profile_is_shown_as_such(rows):
    found, printed = rows("scripts/qwen2.5-math-7b_exgrpo.sh", "profile=released")
    assert printed.startswith("qwen2.5-math-7b / exgrpo / released\n")
    assert found["exgrpo.loss.fresh_clip"][1:] == ["before_replay", "before_replay", "profile=released"]


def test_the_resolved_configuration(capsys):
    assert main(["config", "--full", "backbone=llama-3.1-8b"]) == 0
    full = yaml.safe_load(capsys.readouterr().out)
    assert full["exgrpo"]["start_threshold"] is None
    assert full["actor_rollout_ref"]["actor"]["loss_scale_factor"] == 8192


def test_a_typo_is_refused(capsys):
    assert main(["config", "backbone=qwen"]) == 2
    assert "backbone/qwen" in "".join(capsys.readouterr().err.split())
