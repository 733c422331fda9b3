"""The structure that a reader relies on: which file may import which, drawn from the imports themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("unet_segmentation", "volume_segmentation", "conv3d_analysis", "predict")
# From the top floor down: a file may import what lies on its own floor or below, never above. A room is one floor.
FLOORS = (
    ("report",),
    ("benchmarks",),
    SCRIPTS,
    ("lab.experiment", "lab.command_line"),
    ("lab.track",),
    ("lab.evaluate",),
    ("lab.model",),
    ("lab.data",),
    ("lab.system",),
    ("metrics", "data_synth"),
)
FILES = sorted(
    path
    for path in [
        *ROOT.glob("*.py"),
        *ROOT.glob("lab/**/*.py"),
        *ROOT.glob("benchmarks/*.py"),
        *ROOT.glob("report/*.py"),
    ]
    if path.name != "__init__.py"
)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def floor_of(module: str) -> int | None:
    """The number of a module's floor, 0 for the top one; None for what is not ours."""
    for number, names in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return None


def imports(path: Path) -> list[str]:
    """The modules of ours that a file imports, at its top or inside a function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if floor_of(name) is not None else node.module for name in whole]
    return [name for name in found if floor_of(name) is not None]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_import_climbs(path):
    own = floor_of(module_of(path))
    assert own is not None, f"{path} stands on no floor"
    climbing = [name for name in imports(path) if floor_of(name) < own]
    assert climbing == []


def test_a_script_takes_nothing_of_another_but_the_network():
    for script in SCRIPTS:
        for node in ast.walk(ast.parse((ROOT / f"{script}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in SCRIPTS:
                assert {alias.name for alias in node.names} <= {"build_unet"}, script


def test_each_room_says_what_belongs_there():
    for room in (path for path in (ROOT / "lab").iterdir() if path.is_dir() and path.name != "__pycache__"):
        tree = ast.parse((room / "__init__.py").read_text())
        assert ast.get_docstring(tree) and len(tree.body) == 1, room


def test_nobody_imports_tensorflow_where_keras_has_the_call():
    allowed = {"lab.system.backend", "lab.model.training"}
    for path in FILES:
        if module_of(path).startswith("lab") or module_of(path) in SCRIPTS:
            text = path.read_text(encoding="utf-8")
            assert module_of(path) in allowed or "import tensorflow" not in text, path


def test_a_tests_name_fits_on_a_line():
    names = [
        node.name
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    ]
    assert names and [name for name in names if len(name) > 79] == []
