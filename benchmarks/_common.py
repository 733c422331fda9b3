"""What the comparisons share: timing in turns, and a results file that says where and when it was made."""

import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab import backend

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

backend.prepare_tensorflow()

PACKAGES = ("numpy", "scipy", "keras", "tensorflow", "torch", "jax", "monai", "torchmetrics")


def in_turns(sides: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call: A, B, A, B, ... `rounds` times, after one round that is not counted.

    In turns, because a machine's speed drifts: what is slow meets every side.
    """
    times = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            started = time.perf_counter()
            call()
            if number > 0:
                times[name].append(time.perf_counter() - started)
    return times


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def machine() -> dict:
    """The processor, its cores, and what it has for short floating-point numbers."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", "unknown"),
        "family_model": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "cores": os.cpu_count(),
        "flags": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
    }


def circumstances() -> dict:
    """Date, machine, versions and commit."""
    from lab import tracking

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": machine(),
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,  # was it quiet?
        "versions": versions,
        "provenance": tracking.provenance(),
    }


def write(name: str, result: dict) -> None:
    """Write benchmarks/results/NAME.json: the result and its circumstances."""
    RESULTS.mkdir(exist_ok=True)
    aside = RESULTS / f"{name}.partial"
    aside.write_text(json.dumps({**circumstances(), **result}, indent=1) + "\n")
    os.replace(aside, RESULTS / f"{name}.json")


def read(name: str) -> dict:
    """What benchmarks/results/NAME.json holds, or nothing."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def table(titles: list[str], rows: list[list]) -> str:
    """A Markdown table; floats with three significant digits."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [titles, ["---"] * len(titles), *cells])
