"""A study whose arms are tuned alike: rates, their choice, claims pooled over settings, their correction, equal cost."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from recipe.exgrpo.lab.equal_cost import at_equal_cost, equal_cost_tables
from recipe.exgrpo.lab.evidence import BEGIN, END, run_stages, write_document
from recipe.exgrpo.lab.grid import Cell
from recipe.exgrpo.lab.rates import best_rates, label, split_label
from recipe.exgrpo.lab.registration import Hypothesis, Registration, Stage, load_registration
from recipe.exgrpo.lab.report import read_results, setting_tables
from recipe.exgrpo.lab.tables import read_table
from recipe.exgrpo.lab.trainer import LabSettings
from recipe.exgrpo.lab.verdicts import holm, judge, p_value
from recipe.exgrpo.report.comparison import Comparison
from recipe.exgrpo.report.stats import interval

torch.set_num_threads(1)
TINY = {
    **{"steps": 1, "questions": 2, "group_size": 2, "eval_samples": 1, "final_samples": 1},
    **{"train_questions": 4, "heldout_questions": 2},
}
RECIPE = {"clean_steps": 2, "faulty_steps": 1, "batch_size": 2}
GRID = {
    "suite": "on_policy,refill",
    "families": ["addition"],
    "bases": ["mid", "weak"],
    "settings": TINY,
    "recipe": RECIPE,
}
TUNING = GRID | {"base_seeds": [0], "seeds": [0], "rates": [1, 3]}
TEST = {name: value for name, value in GRID.items() if name not in ("families", "bases")} | {
    "where": [["addition", "mid"], ["addition", "weak"]],
    "base_seeds": [1],
    "seeds": [10, 11],
    "tuned_on": "tuning",
    "equal": ["updated_tokens"],
}
CLAIM = {
    "id": "T1",
    "claim": "refill ends above",
    "stage": "test",
    "variant": "refill",
    "expect": "above",
    "pooled": True,
}


def evaluations(finals: dict, family="chain", base="mid", **costs) -> pd.DataFrame:
    """Curves from 0.2 at step 0 to the finals at step 10: variant -> {(base seed, seed): final}."""
    rows = [
        {"family": family, "base": base, "base_seed": b, "seed": s, "variant": variant, "step": step, "pass_rate": rate}
        for variant, runs in finals.items()
        for (b, s), end in runs.items()
        for step, rate in ((0, 0.2), (10, end))
    ]
    return pd.DataFrame(rows).assign(**costs)


def test_a_label_names_variant_and_rate():
    assert [split_label(text) for text in ("refill", "refill@3", "rho_0.25@1.5")] == [
        ("refill", 1.0),
        ("refill", 3.0),
        ("rho_0.25", 1.5),
    ]
    assert [label("refill", rate) for rate in (1, 3, 0.5)] == ["refill", "refill@3", "refill@0.5"]


@pytest.mark.parametrize("text", ["refill@", "refill@fast", "refill@0", "refill@-1", "refill@nan", "refill@inf"])
def test_a_label_without_a_positive_rate_is_refused(text):
    with pytest.raises(ValueError, match="is not a variant with a rate"):
        split_label(text)


def test_a_cell_runs_its_variant_at_its_rate():
    cells = [Cell("addition", "mid", 0, 7, name) for name in ("refill", "refill@3")]
    assert cells[0].config == cells[1].config
    assert cells[0].config.policy == "refill"
    assert [cell.settings(LabSettings()).learning_rate for cell in cells] == pytest.approx([2e-5, 6e-5])
    assert cells[1].settings(LabSettings(learning_rate=1e-3)).learning_rate == pytest.approx(3e-3)


def test_the_best_rate_is_that_of_the_highest_mean_for_each_setting_and_variant():
    seeds = [(0, 0), (0, 1)]
    runs = {
        "on_policy": dict(zip(seeds, (0.5, 0.5), strict=True)),
        "on_policy@3": dict(
            zip(seeds, (0.9, 0.2), strict=True)
        ),  # the higher mean, by one lucky seed: the rule is the mean
        "refill": dict(zip(seeds, (0.7, 0.7), strict=True)),
        "refill@3": dict(zip(seeds, (0.7, 0.7), strict=True)),
    }
    found = best_rates(evaluations(runs))
    assert found == {(("chain", "mid"), "on_policy"): 3.0, (("chain", "mid"), "refill"): 1.0}


def test_rates_tried_on_different_seeds_are_not_compared():
    runs = {"refill": {(0, 0): 0.5, (0, 1): 0.6}, "refill@3": {(0, 0): 0.9}}
    with pytest.raises(ValueError, match="different seeds"):
        best_rates(evaluations(runs))


def write_study(folder, stages, claims=(CLAIM,), **more):
    path = folder / "evidence" / "study.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"stages": stages, "hypotheses": list(claims)} | more, sort_keys=False))
    (folder / "evidence.md").write_text(f"# Before\n\n{BEGIN}\n{END}\n")
    return path


@pytest.mark.parametrize(("stages", "more", "sentence"), [
    ({"test": TEST}, {}, "no stage before it is called 'tuning'"),
    ({"test": TEST, "tuning": TUNING}, {}, "no stage before it is called 'tuning'"),
    ({"tuning": TUNING, "test": TEST | {"seeds": [0, 1]}}, {}, "must be others than those of tuning"),
    ({"tuning": TUNING, "test": TEST | {"base_seeds": [0]}}, {}, "must be others than those of tuning"),
    ({"tuning": TUNING, "test": TEST | {"rates": [3]}}, {}, "it has none of its own"),
    ({"tuning": TUNING | {"suite": "on_policy"}, "test": TEST}, {}, "does not run 'refill'"),
    ({"tuning": TUNING | {"bases": ["mid"]}, "test": TEST}, {}, "does not run 'addition, weak'"),
    ({"tuning": TUNING, "test": TEST}, {"correction": "some"}, "correction must be one of none, holm"),
    ({"tuning": TUNING, "test": TEST | {"bases": ["mid"]}}, {}, "families and bases, or as where"),
    ({"tuning": TUNING, "test": TEST | {"where": [["addition"]]}}, {}, "families and bases, or as where"),
    ({"tuning": TUNING | {"families": [], "bases": []}, "test": TEST}, {}, "families and bases, or as where"),
])  # fmt: skip
def test_a_tuning_that_would_not_be_fair_is_refused(tmp_path, stages, more, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_registration(write_study(tmp_path, stages, **more))


def test_a_tuned_stage_runs_each_variant_at_its_best_rate_on_seeds_of_its_own(tmp_path):
    path = write_study(tmp_path, {"tuning": TUNING, "test": TEST}, correction="holm")
    folders = tmp_path / "bases", tmp_path / "cells"
    with pytest.raises(ValueError, match="stage tuning, whose runs are not complete"):
        run_stages(path, ["test"], *folders, 1, lambda stage, total: None)
    run_stages(path, [], *folders, 1, lambda stage, total: None)
    tuning, test = (read_table(path.parent / name / "results.parquet") for name in ("tuning", "test"))
    assert set(tuning["variant"]) == {"on_policy", "on_policy@3", "refill", "refill@3"}
    best = best_rates(tuning)
    ran = {((r.family, r.base), r.variant): r.rate for r in test.itertuples()}
    assert ran == best
    assert set(test["base_seed"]) == {1}
    assert set(test["seed"]) == {10, 11}
    (row,) = write_document(path, tmp_path / "evidence.md")
    assert (row["setting"], row["runs"], row["planned"]) == ("all", 2, 2)
    text = (tmp_path / "evidence.md").read_text()
    assert "| corrected p |" in text
    assert "learning rate (x the family's)" in text
    assert "### addition, weak base, at equal updated tokens" in text
    assert run_stages(path, [], tmp_path / "none", tmp_path / "none", 1, None) is None  # complete: nothing to run


def two_settings(finals: dict[str, dict]) -> Comparison:
    """A comparison of two settings from base -> variant -> runs."""
    table = pd.concat([evaluations(runs, base=base) for base, runs in finals.items()])
    costs = table.drop_duplicates(["base", "base_seed", "seed", "variant"]).drop(columns=["step", "pass_rate"])
    return Comparison(table, costs, ("family", "base"), ("base_seed", "seed"))


def registration(claims, correction="holm") -> Registration:
    stage = Stage("on_policy,refill,exgrpo", [1], [10, 11, 12], where=[["chain", "mid"], ["chain", "weak"]])
    return Registration({"test": stage}, [Hypothesis(**CLAIM | claim) for claim in claims], correction)


def test_a_pooled_claim_is_about_the_mean_over_settings_of_each_pair():
    seeds = [(1, 10), (1, 11), (1, 12)]
    mid = {"on_policy": [0.5, 0.6, 0.7], "refill": [0.55, 0.68, 0.73], "exgrpo": [0.5, 0.6, 0.7]}
    weak = {"on_policy": [0.2, 0.3, 0.1], "refill": [0.22, 0.29, 0.16], "exgrpo": [0.2, 0.3, 0.1]}
    found = {
        base: {name: dict(zip(seeds, values, strict=True)) for name, values in runs.items()}
        for base, runs in (("mid", mid), ("weak", weak))
    }
    (row,) = judge(registration([{}]), {"test": two_settings(found)})
    each = [np.subtract(runs["refill"], runs["on_policy"]) for runs in (mid, weak)]
    expected = interval(np.mean(each, axis=0))
    assert row["final"] == pytest.approx(expected.mean)
    assert row["final_half"] == pytest.approx(expected.half)
    assert row["runs"] == 3


def test_a_pooled_claim_with_a_pair_missing_in_one_setting_is_not_tested():
    seeds = [(1, 10), (1, 11), (1, 12)]
    full = {name: dict.fromkeys(seeds, 0.5) for name in ("on_policy", "refill", "exgrpo")}
    torn = full | {"refill": {seeds[0]: 0.9, seeds[1]: 0.9}}
    (row,) = judge(registration([{}]), {"test": two_settings({"mid": full, "weak": torn})})
    assert (row["runs"], row["verdict"], row["corrected_p"]) == (2, "not tested", 1.0)


def test_what_is_supported_alone_may_be_undecided_among_many_claims():
    seeds, rng = [(1, 10), (1, 11), (1, 12)], np.random.default_rng(0)
    base = rng.uniform(0.4, 0.6, 3)
    runs = {
        "on_policy": base,
        "refill": base + np.array([0.05, 0.06, 0.09]),
        "exgrpo": base + np.array([0.02, -0.02, 0.01]),
    }
    named = {name: dict(zip(seeds, values, strict=True)) for name, values in runs.items()}
    results = {"test": two_settings({"mid": named, "weak": named})}
    alone = judge(registration([{}]), results)[0]
    among = judge(registration([{}, *({"id": f"T{i}", "variant": "exgrpo"} for i in range(2, 5))]), results)
    assert alone["verdict"] == "supported"
    assert alone["corrected_p"] == pytest.approx(p_value(interval([0.05, 0.06, 0.09])))
    assert among[0]["verdict"] == "undecided"
    assert among[0]["corrected_p"] == pytest.approx(min(1, 4 * alone["corrected_p"]))
    assert judge(registration([{}], "none"), results)[0]["corrected_p"] is None


def test_claims_about_single_settings_are_beside_the_correction():
    seeds = [(1, 10), (1, 11), (1, 12)]
    runs = {"on_policy": [0.5, 0.5, 0.5], "refill": [0.55, 0.56, 0.59], "exgrpo": [0.5, 0.5, 0.5]}
    named = {name: dict(zip(seeds, values, strict=True)) for name, values in runs.items()}
    rows = judge(
        registration([{}, {"id": "S", "pooled": False}]), {"test": two_settings({"mid": named, "weak": named})}
    )
    assert [(row["setting"], row["corrected_p"] is None) for row in rows] == [
        ("all", False),
        ("chain, mid", True),
        ("chain, weak", True),
    ]
    assert rows[0]["corrected_p"] == pytest.approx(p_value(interval([0.05, 0.06, 0.09])))


@pytest.mark.parametrize("seed", range(20))
def test_holm_against_its_definition(seed):
    rng = np.random.default_rng(seed)
    given = rng.uniform(0, 0.2, rng.integers(1, 8)).tolist()
    if seed % 2:
        given[-1] = given[0]  # ties
    ordered, m = sorted(given), len(given)
    expected = {p: max(min(1, (m - j) * ordered[j]) for j in range(m) if ordered[j] <= p) for p in given}
    assert holm(given) == pytest.approx([expected[p] for p in given])


def test_p_values_against_tables_of_student():
    # 2.262 is the 97.5 % point of t with 9 degrees of freedom, 3.250 the 99.5 % point.
    values = np.array([-1.0, 1.0] * 5)
    error = values.std(ddof=1) / math.sqrt(10)
    assert p_value(interval(values + 2.262157 * error)) == pytest.approx(0.05, abs=1e-5)
    assert p_value(interval(values - 3.249836 * error)) == pytest.approx(0.01, abs=1e-5)
    assert p_value(interval(values + 0.5), border=0.5) == pytest.approx(1.0)
    assert [p_value(interval([x, x])) for x in (0.0, 0.1)] == [1.0, 0.0]


def test_equal_cost_is_what_the_cheapest_spent_and_nothing_is_extrapolated():
    table = evaluations({"on_policy": {(1, 10): 0.6}, "refill": {(1, 10): 1.0}})
    table["updated_tokens"] = [0, 100, 0, 400]
    found = at_equal_cost(table, "updated_tokens").set_index("variant")
    assert found["amount"].tolist() == [100.0, 100.0]
    assert found["pass_rate"].to_dict() == pytest.approx({"on_policy": 0.6, "refill": 0.2 + 0.8 * 100 / 400})
    lines = equal_cost_tables(table, ["updated_tokens"], "on_policy")
    assert "| `refill` | 1 | 100 | 0.400 | -0.200 |" in lines


def test_amounts_are_those_of_a_setting_and_pair_of_seeds():
    table = evaluations({"on_policy": {(1, 10): 0.6, (1, 11): 0.6}, "refill": {(1, 10): 1.0, (1, 11): 1.0}})
    table["fresh_rollouts"] = list(itertools.chain.from_iterable((0, end) for end in (100, 30, 50, 60)))
    found = at_equal_cost(table, "fresh_rollouts").set_index(["variant", "seed"])["amount"]
    assert found.to_dict() == {("on_policy", 10): 50, ("on_policy", 11): 30, ("refill", 10): 50, ("refill", 11): 30}


def test_an_unknown_cost_is_refused():
    with pytest.raises(ValueError, match="no cost called 'gold'"):
        at_equal_cost(evaluations({"on_policy": {(1, 10): 0.6}}), "gold")


def test_published_tables_without_rates_have_no_column_of_them():
    folder = Path(__file__).resolve().parents[2] / "docs/evidence/first/main"
    assert "learning rate" not in "\n".join(setting_tables(read_results(folder).summary("on_policy")))
