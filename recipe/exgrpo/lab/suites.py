"""Variants by name, and the suites that compare them. A variant is an `ExGRPOConfig` and nothing else.

A variant that is a preset of training runs (config/method, config/ablation) is read from its yaml file; the others are written
here as the keys in which they differ from the paper's. To add one, add a line, or a preset.
"""

from functools import cache
from typing import Any

from recipe.exgrpo.core.config import ExGRPOConfig, nearest
from recipe.exgrpo.presets.variants import GROUPS, preset_names, preset_settings

AT_ONCE = {"start_threshold": None}
REFILL = {"policy": "refill", **AT_ONCE}

LAB_ONLY: dict[str, dict[str, Any]] = {
    "exgrpo_at_once": AT_ONCE,
    "lowest_perplexity": {"rank": "lowest_perplexity"},
    "beta_0.01": {"loss": {"beta": 0.01}},
    "beta_1": {"loss": {"beta": 1.0}},
    # where the released code differs from the paper
    "sigma_accuracy": {"question": {"sigma_unit": "accuracy"}},
    "keep_unsolved": {"bookkeeping": {"keep_unsolved": True}},
    "unclipped_fresh": {"loss": {"fresh_clip": "before_replay"}},
    # App. F.1
    "masked_easy": {"policy": "masked", "mask": {"band": "easy"}},
    "masked_medium": {"policy": "masked", "mask": {"band": "medium"}},
    "masked_hard": {"policy": "masked", "mask": {"band": "hard"}},
    # the papers' replay on top of the batch (docs/methods.md)
    "headroom_extra": {"policy": "headroom", **AT_ONCE, "rows": {"extra": 0.5}},
    "anchored_extra": {"policy": "anchored", **AT_ONCE, "buffer": {"max_age_steps": 9}, "rows": {"extra": 0.5}},
    # controls
    "no_retirement": {"bookkeeping": {"retire": False}},
    "fresh_counts": {"bookkeeping": {"fresh_only": True}},
    "refill_current": {**REFILL, "refill": {"source": "current"}},
    "refill_reps_2": {**REFILL, "refill": {"reps": 2}},
    "refill_reps_4": {**REFILL, "refill": {"reps": 4}},
    "refill_uniform": {**REFILL, "refill": {"power": 0.0}},
    # without replay
    "dynamic_sampling": {"policy": "on_policy", "dynamic_sampling": True},
    "zero_variance_out": {"policy": "on_policy", "loss": {"denominator": "mixed"}},
}
SELECTION = (
    "no_question_selection",
    "no_trajectory_selection",
    "no_selection",
    "highest_entropy",
    "lowest_perplexity",
)
OBJECTIVE = ("no_shaping", "no_shaping_clipped", "no_is_correction", "beta_0.01", "beta_1")
SENSITIVITY = ("rho_0.25", "rho_0.75", "sigma_0.5", "sigma_1.5", "mu_0.25")
RELEASED = ("sigma_accuracy", "keep_unsolved", "unclipped_fresh")
CONTROLS = ("retirement_only", "selection_only", "no_retirement", "fresh_counts", "refill_current")
MASKED = ("masked_easy", "masked_medium", "masked_hard")
REFILLS = ("refill_reps_2", "refill_reps_4", "refill_uniform")
METHODS = (
    "su01",
    "headroom",
    "headroom_extra",
    "rescue",
    "anchored",
    "anchored_extra",
    "freshper",
    "repo",
    "prompts",
    "grpo",
    "rl_zvp",
    "luffy",
    "rlep",
    "dynamic_sampling",
    "zero_variance_out",
)  # other papers' (docs/methods.md)
REFERENCE = "on_policy"
# Every variant, in the order of tables.
VARIANTS = (
    REFERENCE, "exgrpo", "exgrpo_at_once", *SELECTION, *OBJECTIVE, *SENSITIVITY, "retired_review", *RELEASED,
    *MASKED, *CONTROLS[:-1], "refill", "refill_current", *REFILLS, *METHODS,
)  # fmt: skip

SUITES: dict[str, tuple[str, ...]] = {
    "smoke": (REFERENCE, "exgrpo", "refill"),
    "main": (REFERENCE, "exgrpo", "exgrpo_at_once", "refill", "refill_current"),
    "table3": (REFERENCE, "exgrpo", *SENSITIVITY),
    "table6": (REFERENCE, "exgrpo", *SELECTION, *OBJECTIVE),
    "table7": (REFERENCE, "exgrpo", "retired_review", *RELEASED),
    "masked": (REFERENCE, *MASKED),
    "controls": (REFERENCE, "exgrpo_at_once", "refill", *CONTROLS),
    "refills": (REFERENCE, "refill", "refill_current", *REFILLS),
    "methods": (REFERENCE, "exgrpo", "refill", *METHODS),
    "all": VARIANTS,
}


@cache
def differences(name: str) -> dict[str, Any]:
    """The keys below `exgrpo:` in which a variant differs from the paper's preset; ValueError for an unknown name."""
    if name in LAB_ONLY:
        return LAB_ONLY[name]
    for group in GROUPS:
        if name in preset_names(group):
            return preset_settings(group, name)
    raise ValueError(f"no variant is called {name!r}; {nearest(name, VARIANTS)}.")


def variant(name: str, seed: int = 0, **overrides: Any) -> ExGRPOConfig:
    """The configuration called `name`; `overrides` are top-level keys. ValueError for unknown names and keys."""
    return ExGRPOConfig.from_mapping(differences(name) | {"seed": seed} | overrides)


def suite(name: str) -> tuple[str, ...]:
    """Variants of a suite, the reference first; several names may be joined by commas, variants included."""
    found: dict[str, None] = {}
    for part in name.split(","):
        if part not in SUITES and part not in VARIANTS:
            raise ValueError(f"no suite or variant is called {part!r}; suites: {', '.join(SUITES)}.")
        found |= dict.fromkeys(SUITES.get(part, (part,)))
    return tuple(found)
