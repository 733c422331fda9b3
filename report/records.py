"""What the report reads of records in benchmarks/results that may not be there: a paragraph each, left out without.

`read_all()` returns {name: what the report cites}, of the records that exist. Keys hold no point, for Typst.
"""

import statistics

import numpy as np

from benchmarks import _common, processors
from benchmarks.intervals import over_seeds, paired, wilson


def photographs(found: dict) -> dict:
    """Dice by picture and method; the spread over the seeds of the network that has seen varied circles."""
    rows = [{"picture": picture, "dice": dice} for picture, dice in found["dice"].items()]
    seeds = {_key(name): over_seeds(values) for name, values in found["dice_of_varied_by_seed"].items()}
    return {
        "rows": rows,
        "by_seed": seeds,
        "seeds": len(next(iter(seeds.values()))["values"]),
        "held_out": [_key(name) for name in found.get("held_out", ())],
        "own_crops": found["own_crops"],
    }


def object_sizes(found: dict) -> dict:
    """Mean Dice by radius: as it is, at the scale that is found, at the best one."""
    kept = ("radius", "dice", "dice_as_it_is", "dice_of_best_scale")
    return {"images": found["images"], "rows": [{key: row[key] for key in kept} for row in found["rows"]]}


def commands(found: dict) -> dict:
    """The longest time of each command; of volume_segmentation.py mean Dice over the seeds, beside two references."""
    rows = [row for row in found["rows"] if row["name"] == "volumes"]
    references = {"threshold": "best threshold", "filter": "Gaussian filter"}
    return {
        "network": over_seeds(row["test"]["image_dice"] for row in rows),
        "seconds": {row["name"]: row["seconds"] for row in sorted(found["rows"], key=lambda row: row["seconds"])},
        **{
            name: over_seeds(
                scores["image_dice"]
                for row in rows
                for baseline, scores in row["baselines"].items()
                if baseline.startswith(start)
            )
            for name, start in references.items()
        },
    }


def faults(found: dict) -> dict:
    """By attack: how many attempts ended as promised, of how many, with the interval of that share."""
    attacks = {}
    for row in found["rows"]:
        outcomes = [counts for what, counts in row["outcomes"].items() if what != "undisturbed"]
        right, tried = (sum(counts[i] for counts in outcomes) for i in (0, 1))
        if tried:
            attacks[row["attack"]] = wilson(right, tried)
    total = wilson(*(sum(row[name] for row in attacks.values()) for name in ("k", "n")))
    return {"attacks": attacks, "total": total}


def shared_server(found: dict) -> dict:
    """What the server held of what it should, by kind."""
    held = {name: {"k": held, "n": wanted} for name, (held, wanted) in found["held"].items()}
    kept = ("rounds", "failures", "runs_without_an_end", "same_mask")
    return {"held": held, **{name: found[name] for name in kept}}


def own_data(found: dict) -> dict:
    """Dice by picture and side over the splits, and how it differs from ours, paired by split."""
    groups = {}
    for row in found["rows"]:
        groups.setdefault((row["data"], row["side"]), {}).setdefault(row.get("rate"), {})[row["split"]] = row["dice"]
    # Of a network's rates the one that went on to further splits, as benchmarks/own_data.py says.
    best = {
        place: max(of_rate.values(), key=lambda splits: (len(splits), statistics.mean(splits.values())))
        for place, of_rate in groups.items()
    }
    times = {}
    for row in found["rows"]:
        times.setdefault((row["data"], row["side"]), []).append(row.get("seconds", 0))
    seconds = {place: statistics.mean(of) for place, of in times.items()}
    data = {}
    for (name, side), splits in best.items():
        ours = best.get((name, "ours"), {})
        both = [split for split in splits if split in ours]
        compared = side != "ours" and len(both) > 1
        data.setdefault(_key(name), {})[_key(side)] = {
            "dice": over_seeds(splits.values()),
            "seconds": seconds.get((name, side)),
            "less_ours": paired(*([of[split] for split in both] for of in (ours, splits))) if compared else None,
        }
    rates = {row["rate"] for row in found["rows"] if row.get("rate")}
    return {"data": data, "splits": max(map(len, best.values())), "num_rates": len(rates)}


def grey_values(found: dict) -> dict:
    """By case, mean Dice over the seeds: of the best threshold of raw and of clipped values, and of the network."""
    keys = ("raw_threshold", "clipped_threshold", "dice")
    cases = {}
    for row in found["rows"]:
        cases.setdefault(_key(row["case"]), []).append(row)
    return {case: {key: statistics.mean(row[key] for row in rows) for key in keys} for case, rows in cases.items()}


def classes(found: dict) -> dict:
    """Of the shapes: Dice over the seeds, how many objects got another class, and the share of each true class's pixels
    that was found as each class; Dice of the small class by loss.
    """
    from benchmarks import classes as benchmark

    shapes = benchmark.of(found["rows"], "shapes")
    names = tuple(shapes[0]["objects"])
    result: dict = {
        "seeds": len(shapes),
        "dice": over_seeds(row["test"]["image_dice"] for row in shapes),
        **{what: benchmark.count(shapes, what, names) for what in ("objects", "confused")},
    }
    matrices = [row["confusion"] for row in shapes if "confusion" in row]
    if matrices:
        counts = np.sum(matrices, axis=0)
        titles, shares = ("background", *names), counts / counts.sum(axis=1, keepdims=True)
        result["confusion_seeds"] = len(matrices)
        result["confusion"] = {
            true: dict(zip(titles, line.tolist(), strict=True)) for true, line in zip(titles, shares, strict=True)
        }
    losses = {loss: benchmark.finals(found["rows"], loss) for loss in ("ce", "dice", "dice+ce")}
    if all(losses.values()):
        result["losses"] = {
            _key(loss).replace("+", "_"): over_seeds(row["test"]["image_dice/square"] for row in rows)
            for loss, rows in losses.items()
        }
    return result


def deep_structures(found: dict) -> dict:
    """Mean Dice of the structures by side, over the seeds, and the seconds of a training."""
    from benchmarks import deep_structures as benchmark

    budget = max(row["budget"] for row in found["rows"])
    sides = {row["side"]: 0 if row["side"] == "windows" else budget for row in found["rows"]}
    best = {side: benchmark.best_rates(found["rows"], side, seconds) for side, seconds in sides.items()}
    seconds = statistics.mean(row["seconds"] for row in best["ours"])
    return {
        "seconds": seconds,
        "num_rates": len(benchmark.RATES),
        "sides": {
            side: {
                "dice": over_seeds(row["dice"] for row in rows),
                "structures": {
                    _key(name): over_seeds(row["structures"][name] for row in rows) for name in benchmark.STRUCTURES
                },
            }
            for side, rows in best.items()
        },
    }


READERS = {
    "classes": classes,
    "deep_structures": deep_structures,
    "photographs": photographs,
    "object_sizes": object_sizes,
    "own_data": own_data,
    "grey_values": grey_values,
    "commands": commands,
    "faults": faults,
    "processors": processors.compared,
    "shared_server": shared_server,
}


def read_all() -> dict:
    """What the report cites of the records that exist."""
    return {name: reader(found) for name, reader in READERS.items() if (found := _common.read(name))}


def compute() -> list[dict]:
    """What was computed for the report in benchmarks/: runs and hours by record, where the record has the time."""

    def seconds(row):
        if row.get("epochs"):
            return row["epochs"][-1]["seconds"]
        return row.get("wall_seconds") or row.get("training_seconds") or row.get("seconds") or 0

    sums = {}
    for name in ("scores", "ablation", "noise", "time_to_score", "own_data", "deep_structures"):
        rows = trainings(name)
        if rows:
            sums[name] = (len(rows), sum(map(seconds, rows)))
    if attacks := _common.rows("faults"):
        tried = faults({"rows": attacks})["total"]["n"]
        sums["faults"] = (tried, sum(map(seconds, attacks)))
    if study := _common.read("conv3d_study"):
        sums["conv3d_study"] = (study["summary"]["num_measured"], study["summary"]["seconds"])
    if shared := _common.read("shared_server"):
        sums["shared_server"] = (shared["held"]["runs"][1], shared["seconds"])
    return [{"record": name, "runs": runs, "hours": time / 3600} for name, (runs, time) in sums.items()]


def trainings(name: str) -> list[dict]:
    """The rows of a record that are trainings of their own: no score of a threshold, nor of another row's training."""
    again = ("Otsu", "windows", "mean of weights", "flips")  # the last two are scores of the training of `ours`
    return [row for row in _common.rows(name) if row.get("side") not in again]


def _key(name: str) -> str:
    return name.replace(" ", "_").replace(",", "")
