"""The README's commands as a user runs them: how long each takes as a whole, and what it reaches.

    python -m benchmarks.commands                             # 20 minutes, nothing else running
    python -m benchmarks.commands --only volumes --seeds 1    # a part of it, added to what is recorded

Each is a process of its own with the script's defaults, from the start of Python to the last file.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import _common, scores

COMMANDS = {
    "circles": ("unet_segmentation.py",),
    "photographs": ("unet_segmentation.py", "--recipe", "photographs"),
    "volumes": ("volume_segmentation.py",),
    "conv3d": ("conv3d_analysis.py",),
}
SEEDS = (1, 2, 3)


def key(row: dict) -> tuple:
    """Which rows are the same measurement, and their order."""
    return list(COMMANDS).index(row["name"]), row["seed"]


def run(name: str, seed: int) -> dict:
    """Run one command with a store and a folder of its own; return its seconds, and what scores it writes."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        command = [sys.executable, *COMMANDS[name], "--seed", str(seed), "--out-dir", f"{folder}/out"]
        started = time.perf_counter()
        subprocess.run(command, cwd=_common.ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
        seconds = time.perf_counter() - started
        path = Path(folder) / "out" / "scores.json"
        found = json.loads(path.read_text()) if path.exists() else {}
    kept = {part: found[part] for part in ("test", "baselines", "settings") if part in found}
    return {"name": name, "seed": seed, "seconds": seconds, **kept}


def times(rows: list[dict]) -> dict[str, float]:
    """Median seconds of each command."""
    seconds: dict = {}
    for row in rows:
        seconds.setdefault(row["name"], []).append(row["seconds"])
    return {name: statistics.median(some) for name, some in seconds.items()}


def volumes(rows: list[dict]) -> str:
    """What the 3D network and the references reach on spheres, in a sentence."""
    rows = [row for row in rows if row["name"] == "volumes"]
    reached = {"the 3D U-Net": [row["test"] for row in rows]}
    for row in rows:
        for name, found in row["baselines"].items():
            name = re.sub(r" of [\d.]+,", ",", name)  # the width of a filter, chosen by validation
            reached.setdefault(name, []).append(found)
    told = ", ".join(
        f"{name} {scores.mean_and_spread([found['image_dice'] for found in some])}" for name, some in reached.items()
    )
    return f"Mean Dice of {rows[0]['settings']['test_volumes']} unseen volumes, {len(rows)} seeds: {told}."


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="which commands")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="of each command")
    args = parser.parse_args(argv)
    for seed in args.seeds:
        for name in args.only:
            others = _common.busy()
            row = run(name, seed)
            print(f"{name}, seed {seed}: {row['seconds']:.0f} s", flush=True)
            _common.record("commands", row, key, others)
    print(times(_common.rows("commands")))


if __name__ == "__main__":
    main()
