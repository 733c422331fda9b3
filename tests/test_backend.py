"""What differs between machines, asked for in processes of their own."""

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.system import backend, processes

ROOT = Path(__file__).resolve().parent.parent


def run(code, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "KERAS_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True)


def test_keras_is_imported_in_silence_with_onednn_and_without_scikit_learn():
    code = "import os, sys; from lab.system import backend; backend.import_keras(); assert 'sklearn' not in sys.modules"
    code += (
        "; import sklearn; print(sklearn.__name__, sys.modules['keras'].__name__); "  # it can be imported afterwards
    )
    code += "print(os.getenv('TF_ENABLE_ONEDNN_OPTS'))"
    done = run(code)
    assert done.stderr == ""
    assert done.stdout in ("sklearn keras\n1\n", "sklearn keras\nNone\n")  # None: not an x86 processor


def test_what_the_user_has_set_stays():
    code = "from lab.system import backend; backend.prepare(); import os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    assert run(code, TF_ENABLE_ONEDNN_OPTS="0").stdout == "0\n"


def test_a_backend_that_is_not_there_is_one_sentence():
    done = run("from lab.system import backend; backend.import_keras()", KERAS_BACKEND="abacus")
    assert "ValueError: KERAS_BACKEND=abacus cannot be used" in done.stderr


@pytest.mark.parametrize("script", ["unet_segmentation", "volume_segmentation", "conv3d_analysis"])
def test_no_script_that_trains_begins_on_torch(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(script).main([])
    assert stop.value.code == 2 and "KERAS_BACKEND=torch is not supported" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_jax_starts_in_silence():
    pytest.importorskip("jax")
    code = "from lab.system import backend; backend.start('float32', False, 0); print('started')"
    done = run(code, KERAS_BACKEND="jax")
    assert done.stderr == "" and done.stdout == "started\n"


def test_importing_the_lab_only_defines():
    library = ("__init__", "muon", "served_model")  # classes of Keras and MLflow, imported where they are needed
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "lab").glob("**/*.py")]
    modules = ", ".join(".".join(file.parts) for file in files if file.name not in library)
    scripts = ", ".join(path.stem for path in ROOT.glob("*.py") if path.stem != "metrics")
    slow = "{'keras', 'tensorflow', 'mlflow', 'matplotlib', 'scipy'}"
    code = f"import os, sys; before = dict(os.environ); import {modules}, {scripts}; "
    code += f"print(sorted({slow} & set(sys.modules)), before == dict(os.environ))"
    assert run(code).stdout == "[] True\n"


def test_cores_and_processor_are_named():
    found = backend.processor()
    assert found["processor"] and found["cores"] >= 1
    assert f"{found['cores']} cores" in backend.device()
    assert {"python.version", "keras.version", "numpy.version", "device"} <= backend.provenance().keys()


@pytest.mark.parametrize(("num", "batch", "equal"), [(14, 4, True), (16, 4, True), (13, 4, False), (15, 3, False)])
def test_unequal_shares_of_a_batch_are_refused(monkeypatch, num, batch, equal):
    monkeypatch.setattr(processes, "num_devices", lambda: 2)
    with contextlib.nullcontext() if equal else pytest.raises(ValueError, match="shared equally by 2 devices"):
        processes.check_shares(num, batch, "images")


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_and_dirty_tree_are_those_of_our_own_repository_only(tmp_path):
    shutil.copy(backend.__file__, tmp_path)
    assert backend.git_tags(tmp_path, "backend.py") == {}  # no repository
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "someone else's")
    assert backend.git_tags(tmp_path, "backend.py") == {}  # a repository that does not hold the file
    git(tmp_path, "add", "backend.py")
    git(tmp_path, "commit", "-m", "ours")
    clean = backend.git_tags(tmp_path, "backend.py")
    assert clean["git.dirty"] == "false" and len(clean["mlflow.source.git.commit"]) == 40
    (tmp_path / "new.py").touch()
    assert backend.git_tags(tmp_path, "backend.py") == {**clean, "git.dirty": "true"}
