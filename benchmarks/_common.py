"""What the comparisons share: timing in turns, and records that say where and when they were made.

A measurement that is made in one go is a file of its own, `write("memory", {...})`. One that grows row by row, each the
work of minutes, goes through `record("scores", row, key)`: what is recorded is there whatever happens next.
"""

import ast
import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab.system import backend, output_files

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RECORDED = ("benchmarks/results", "report/results.json", "report/figures", "report/*.pdf", "pictures")
PACKAGES = ("numpy", "scipy", "keras", "tensorflow", "torch", "jax", "monai", "torchmetrics")
QUIET = 0.1  # share of the processors that other programs may have while something is timed


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


def busy(seconds: float = 2) -> float:
    """Share of the processors that other programs use, in [0, 1], watched while this one sleeps."""
    import psutil

    return psutil.cpu_percent(seconds) / 100


def circumstances() -> dict:
    """Date, command, machine, versions and commit, for a record."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": backend.processor(),
        "versions": versions,
        "provenance": provenance(),
    }


def provenance() -> dict[str, str]:
    """As `backend.provenance()`, but what the runs themselves write, records and pictures, makes no tree dirty."""
    found = backend.provenance()
    if found.get("git.dirty") == "true":
        paths = [".", *(f":(exclude){path}" for path in RECORDED)]
        command = ["git", "--no-optional-locks", "-C", str(ROOT), "status", "--porcelain", "--", *paths]
        found["git.dirty"] = "true" if subprocess.run(command, capture_output=True, check=True).stdout else "false"
    return found


def code_of(file: str) -> tuple[str, ...]:
    """What may make the numbers of a file of this project: it, and what it imports or runs as a script, and so on."""
    found, left = set(), [file]
    while left:
        name = left.pop()
        if name in found or not (ROOT / name).is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse(_text(ROOT / name))):
            match node:
                case ast.Import(names=aliases):
                    modules = [alias.name for alias in aliases]
                case ast.ImportFrom(module=module, names=aliases):
                    modules = [module, *(f"{module}.{alias.name}" for alias in aliases)]
                case ast.Constant(value=str(text)) if text.endswith(".py"):  # in a command
                    modules = [text.removesuffix(".py")]
                case _:
                    continue
            left += [f"{module.replace('.', '/')}.py" for module in modules]
    return tuple(sorted(found))


def changed_code(commit: str, paths: tuple[str, ...]) -> list[str]:
    """Those of some files that do another thing here than at a commit; all of them if it is not known.

    Comments, docstrings and the layout of lines make no number. Without git nothing is known, and nothing is named.
    """

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8")

    if not shutil.which("git"):
        return []
    found = git("diff", "--name-only", "--no-renames", commit, "--", *paths)
    if found.returncode:
        return list(paths)
    names = [name for name in found.stdout.splitlines() if name.endswith(".py")]
    return [name for name in names if _syntax(git("show", f"{commit}:{name}").stdout) != _syntax(_text(ROOT / name))]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _syntax(text: str) -> str:
    """What a file of Python does: its syntax tree without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def write(name: str, result: dict, others: float | None = None) -> None:
    """Write benchmarks/results/NAME.json: the result and its circumstances.

    Args:
        name: of the benchmark.
        result: what was measured.
        others: for a timing, what `busy()` said before it; above QUIET, the result is not recorded.
    """
    if quiet(others):
        _replace(name, {**circumstances(), "others_busy": others, **result})


def record(name: str, row: dict, key: Callable[[dict], tuple], others: float | None = None) -> None:
    """Add a row and its circumstances to benchmarks/results/NAME.json, in place of the one with the same key.

    Args:
        name: of the benchmark.
        row: what was measured.
        key: of a row, says which rows are the same measurement, and sorts them.
        others: as for `write`.
    """
    import filelock

    if not quiet(others):
        return
    (ROOT / "outputs").mkdir(exist_ok=True)
    with filelock.FileLock(ROOT / "outputs" / f"{name}.lock"):  # two may run side by side
        row = {**circumstances(), "others_busy": others, **row}
        kept = [old for old in rows(name) if key(old) != key(row)]
        _replace(name, {"rows": sorted([*kept, row], key=key)})


def quiet(others: float | None) -> bool:
    """Whether a measurement may be recorded; if not, say so."""
    if others is None or others <= QUIET:
        return True
    print(f"Not recorded: other programs had {others:.0%} of the processors, and a timing allows {QUIET:.0%}.")
    return False


def _replace(name: str, content: dict) -> None:
    RESULTS.mkdir(exist_ok=True)
    with output_files.written_aside(RESULTS) as aside:
        output_files.write_json(aside / f"{name}.json", content)


def read(name: str) -> dict:
    """What benchmarks/results/NAME.json holds, or nothing."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def rows(name: str) -> list[dict]:
    """The rows of benchmarks/results/NAME.json."""
    return read(name).get("rows", [])


def table(titles: list[str], rows: list[list]) -> str:
    """A Markdown table; floats with three significant digits."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [titles, ["---"] * len(titles), *cells])
