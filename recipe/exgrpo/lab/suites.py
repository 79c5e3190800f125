"""Variants by name, and the suites that compare them. A variant is an `ExGRPOConfig` and nothing else.

Each is written as the keys in which it differs from the paper's preset. To add one, add a line.
"""

from collections.abc import Mapping
from typing import Any

from recipe.exgrpo.core.config import ExGRPOConfig

AT_ONCE = {"start_threshold": None}
FILL = {"mode": "fill", **AT_ONCE}

VARIANTS: dict[str, dict[str, Any]] = {
    "on_policy": {"enable": False},
    "exgrpo": {},
    "exgrpo_at_once": AT_ONCE,
    # Table 3
    "no_question_selection": {"question": {"weighting": "uniform"}},
    "no_trajectory_selection": {"trajectory": {"select": "random"}},
    "no_selection": {"question": {"weighting": "uniform"}, "trajectory": {"select": "random"}},
    "highest_entropy": {"trajectory": {"select": "highest_entropy"}},
    "lowest_perplexity": {"trajectory": {"select": "lowest_perplexity"}},
    # Table 6
    "no_shaping": {"loss": {"shaping": "none"}},
    "clipped": {"loss": {"shaping": "clip"}},
    "no_is_correction": {"loss": {"importance": "old"}},
    "beta_0.01": {"loss": {"beta": 0.01}},
    "beta_1": {"loss": {"beta": 1.0}},
    "rho_0.25": {"rho": 0.25},
    "rho_0.75": {"rho": 0.75},
    "sigma_0.5": {"question": {"sigma": 0.5}},
    "sigma_1.5": {"question": {"sigma": 1.5}},
    "mu_0.25": {"question": {"mu": 0.25}},
    # Table 7 and where the released code differs from the paper
    "retired_review": {"bookkeeping": {"review_interval": 25, "review_share": 0.1}},
    "sigma_accuracy": {"question": {"sigma_unit": "accuracy"}},
    "keep_unsolved": {"bookkeeping": {"keep_unsolved": True}},
    "unclipped_fresh": {"loss": {"fresh_clip": "before_replay"}},
    # App. F.1
    "masked_easy": {"mode": "masked", "mask": {"band": "easy"}},
    "masked_medium": {"mode": "masked", "mask": {"band": "medium"}},
    "masked_hard": {"mode": "masked", "mask": {"band": "hard"}},
    # controls
    "retirement_only": {"rho": 0.0, **AT_ONCE},
    "questions_only": {"inject": False, **AT_ONCE},
    "no_retirement": {"bookkeeping": {"retire": False}},
    "fresh_counts": {"bookkeeping": {"fresh_only": True}},
    # ours; `fill` is the preset recipe/exgrpo/config/method/robust.yaml
    "fill": FILL,
    "fill_current": {**FILL, "fill": {"source": "current"}},
    "fill_reps_2": {**FILL, "fill": {"reps": 2}},
    "fill_reps_4": {**FILL, "fill": {"reps": 4}},
    "fill_uniform": {**FILL, "fill": {"power": 0.0}},
}

TABLE_3 = ("no_question_selection", "no_trajectory_selection", "no_selection", "highest_entropy", "lowest_perplexity")
TABLE_6 = (
    "no_shaping", "clipped", "no_is_correction", "beta_0.01", "beta_1",
    "rho_0.25", "rho_0.75", "sigma_0.5", "sigma_1.5", "mu_0.25",
)  # fmt: skip
RELEASED = ("sigma_accuracy", "keep_unsolved", "unclipped_fresh")
CONTROLS = ("retirement_only", "questions_only", "no_retirement", "fresh_counts", "fill_current")
MASKED = ("masked_easy", "masked_medium", "masked_hard")
REFERENCE = "on_policy"

SUITES: dict[str, tuple[str, ...]] = {
    "smoke": (REFERENCE, "exgrpo", "fill"),
    "main": (REFERENCE, "exgrpo", "exgrpo_at_once", "fill", "fill_current"),
    "table3": (REFERENCE, "exgrpo", *TABLE_3),
    "table6": (REFERENCE, "exgrpo", *TABLE_6),
    "table7": (REFERENCE, "exgrpo", "retired_review", *RELEASED),
    "masked": (REFERENCE, *MASKED),
    "controls": (REFERENCE, "exgrpo_at_once", "fill", *CONTROLS),
    "fills": (REFERENCE, "fill", "fill_current", "fill_reps_2", "fill_reps_4", "fill_uniform"),
    "all": tuple(VARIANTS),
}


def variant(name: str, seed: int = 0, **overrides: Any) -> ExGRPOConfig:
    """The configuration called `name`; `overrides` are top-level keys. ValueError for unknown names and keys."""
    if name not in VARIANTS:
        raise ValueError(f"no variant is called {name!r}; there are {', '.join(VARIANTS)}.")
    return ExGRPOConfig.from_mapping(_plain(VARIANTS[name]) | {"seed": seed} | overrides)


def suite(name: str) -> tuple[str, ...]:
    """Variants of a suite, the reference first; several names may be joined by commas, variants included."""
    found: dict[str, None] = {}
    for part in name.split(","):
        if part not in SUITES and part not in VARIANTS:
            raise ValueError(f"no suite or variant is called {part!r}; suites: {', '.join(SUITES)}.")
        found |= dict.fromkeys(SUITES.get(part, (part,)))
    return tuple(found)


def _plain(values: Mapping) -> dict:
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in values.items()}
