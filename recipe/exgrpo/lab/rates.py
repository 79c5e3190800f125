"""Variants at several learning rates, and each one's best: a label `refill@3` is `refill` at 3 times the family's rate.

Every arm of a comparison gets the same grid of rates and the same runs to choose from (`best_rates`), on seeds and base models
that the comparison itself does not use.
"""

from collections.abc import Sequence

import pandas as pd

MARK = "@"
BestRates = dict[tuple[tuple[str, str], str], float]  # ((family, base), variant) -> rate


def label(variant: str, rate: float) -> str:
    """The variant at `rate` times the family's learning rate: its own name at 1."""
    return variant if rate == 1 else f"{variant}{MARK}{rate:g}"


def split_label(text: str) -> tuple[str, float]:
    """(variant, rate) of a label; ValueError for a rate that is not a positive number."""
    variant, mark, rate = text.partition(MARK)
    try:
        value = float(rate) if mark else 1.0
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r} is not a variant with a rate, like refill{MARK}3.")
    return variant, value


def best_rates(results: pd.DataFrame) -> BestRates:
    """For each setting and variant the rate with the highest mean final pass rate; the lower one of equals.

    `results` has one row per evaluation: family, base, base_seed, seed, variant (a label), step, pass_rate. ValueError when the
    rates of a variant were not tried on the same seeds: a mean over other runs is another figure.
    """
    last = results[results["step"] == results["step"].max()]
    split = last["variant"].map(split_label)
    table = last.assign(variant=split.str[0], rate=split.str[1])
    means = {}
    for (family, base, variant), runs in table.groupby(["family", "base", "variant"], sort=False):
        seeds = runs.groupby("rate")[["base_seed", "seed"]].apply(lambda rows: frozenset(rows.itertuples(index=False)))
        if seeds.nunique() != 1:
            raise ValueError(f"the rates of {variant} on {family}, {base} were tried on different seeds.")
        means[(family, base), variant] = runs.groupby("rate")["pass_rate"].mean().sort_index()
    return {name: float(found.idxmax()) for name, found in means.items()}


def labels(variants: Sequence[str], rates: Sequence[float]) -> list[str]:
    """Every variant at every rate."""
    return [label(variant, rate) for variant in variants for rate in rates]
