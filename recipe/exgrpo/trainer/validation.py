"""Pass rates of a validation: each data source by itself, and their mean, as the paper averages its six benchmarks."""

from collections.abc import Mapping, Sequence

import pandas as pd


def pass_rates(
    sources: Sequence[str], infos: Mapping[str, Sequence], asked: Mapping[tuple[str, str], int]
) -> dict[str, float]:
    """`val/<source>/pass_rate` of every data source and `val/pass_rate`, the mean over sources, whatever their sizes.

    Args:
        sources: data source of each sample.
        infos: name -> value of each sample, None where there is none: `reward`, and `acc` where a rule gives one.
        asked: (data source, uid) -> samples asked for. A lost one counts as wrong, as in verl's `val-core/`, unless the
            source has no `acc`: for a reward in units of its own nothing is wrong, and the mean is over what is there.
    """
    samples = pd.DataFrame({"acc": infos.get("acc"), "reward": infos["reward"]}, index=list(sources), dtype=float)
    of_source = samples.groupby(level=0, sort=False)
    expected = pd.Series(asked, dtype=float).groupby(level=0).sum()
    rates = (of_source["acc"].sum(min_count=1) / expected).fillna(of_source["reward"].mean()).dropna()
    return {f"val/{source}/pass_rate": float(rate) for source, rate in rates.items()} | {
        "val/pass_rate": float(rates.mean())
    }
