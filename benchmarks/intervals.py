"""What the intervals of tables and report are: spread over seeds, paired differences, shares of few attempts.

paired([0.96, 0.95], [0.97, 0.97])     # of the second less the first: mean and 95% interval
wilson(2, 3)                           # 2 of 3: a 95% interval of the share, [0.21, 0.94]
"""

import statistics

from scipy import stats


def over_seeds(values) -> dict:
    """Mean, standard deviation (of the sample, N - 1) and range of one number over the seeds."""
    values = [float(value) for value in values]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": spread, "min": min(values), "max": max(values), "values": values}


def paired(before, after) -> dict:
    """Of the differences after - before, a pair for each seed: mean and 95% interval by Student's t.

    The interval is mean -+ t s / sqrt(N), with t the 0.975 quantile at N - 1. `zero` says whether it holds 0: then the
    pairs do not carry a difference. Raises ValueError for less than two pairs.
    """
    values = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    if len(values) < 2:
        raise ValueError(f"an interval needs two pairs or more; got {len(values)}.")
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    mean, half = statistics.mean(values), quantile * statistics.stdev(values) / len(values) ** 0.5
    found = {"mean": mean, "low": mean - half, "high": mean + half, "pairs": len(values), "t": quantile}
    return {**found, "zero": found["low"] <= 0 <= found["high"], "values": values}


def wilson(k: int, n: int) -> dict:
    """k of n, and the 95% interval of the share by Wilson (1927), which stays within [0, 1] and suits small n."""
    low, high = stats.binomtest(int(k), int(n)).proportion_ci(0.95, method="wilson")
    return {"k": int(k), "n": int(n), "low": float(low), "high": float(high)}


def told(found: dict, digits: int = 4) -> str:
    """What `paired` found, in Markdown: the mean difference and its interval."""
    mean, low, high = (f"{found[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
