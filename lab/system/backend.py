"""Differences between machines: environment, precision, determinism, devices, and the origin of a result.

    precision = backend.start("auto", deterministic=False, seed=0)

Keras runs on TensorFlow, JAX or PyTorch (KERAS_BACKEND). This file calls what only one of them has.
"""

import functools
import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from lab.system.errors import first_line
from lab.system.signals import signals_wait

ROOT = Path(__file__).resolve().parents[2]


def prepare() -> None:
    """Set the variables that the backend reads at its import; those that the user has set stay."""
    os.environ["MPLBACKEND"] = "Agg"  # figures need no screen; without one, Matplotlib's default fails
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # hides notes on missing drivers; exceptions stay
    # TensorFlow's own memory pool: with the system's, every step maps and clears its memory again (20% slower).
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN's convolutions: by default, TensorFlow uses them only on processors with AVX-512 VNNI or similar. On
        # those with AVX2 alone, an epoch then takes three quarters of the time, and a 3D step a sixth of the memory.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def import_keras():
    """Import Keras and its backend in silence; return the module.

    TensorFlow's libraries write notes to the error stream that look like errors to a newcomer. The stream is kept in a
    file during the import, and shown if that fails.

    Raises:
        ValueError: if KERAS_BACKEND names a backend that is not installed.
    """
    prepare()
    if "keras" in sys.modules:
        return sys.modules["keras"]
    name = os.environ.get("KERAS_BACKEND")
    # Hidden meanwhile: Keras imports it for a second, for functions that the lab does not use.
    hidden = sys.modules.setdefault("sklearn", None) is None
    with _errors_aside():
        try:
            # A signal waits for the end of an import, because an exception during the start of a C library can crash
            # it. The two imports take seconds each, so each has its own block.
            for module in (name or "tensorflow", "keras"):
                with signals_wait():
                    importlib.import_module(module)
        except (ImportError, ValueError) as error:
            if name is None:
                raise
            reason = first_line(error)
            raise ValueError(f"KERAS_BACKEND={name} cannot be used ({reason}); install or unset it.") from error
        finally:
            if hidden:
                del sys.modules["sklearn"]
    return sys.modules["keras"]


@contextmanager
def _errors_aside():
    """Keep the error stream of the process and its libraries in a file; show it if the block raises."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as aside:
        stream = os.dup(2)
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except Exception:  # not after a signal
            aside.seek(0)
            os.write(stream, aside.read())
            raise
        finally:
            os.dup2(stream, 2)
            os.close(stream)


def start(precision: str, deterministic: bool, seed: int) -> str:
    """Set precision, determinism and seed for the process; return the precision that "auto" became."""
    keras = import_keras()
    name = keras.backend.backend()
    if deterministic and name == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif deterministic:
        print(f"--deterministic needs TensorFlow; the backend is {name}: only the seeds are set.")
    precision = choose_precision(precision)
    keras.config.set_dtype_policy(precision)
    with _errors_aside():  # it imports TensorFlow on every backend
        keras.utils.set_random_seed(seed)
    return precision


def refuse_torch() -> None:
    """Raise ValueError if the user wants PyTorch: nothing was ever trained on it here."""
    if os.environ.get("KERAS_BACKEND") == "torch":
        raise ValueError("KERAS_BACKEND=torch is not supported here; unset it to use TensorFlow, or set it to jax.")


def accelerators() -> list[tuple[str, tuple[int, ...]]]:
    """Name and compute capability of each graphics or tensor processor that TensorFlow or JAX sees."""
    name = import_keras().backend.backend()
    if name == "tensorflow":
        import tensorflow as tf

        details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
        return [(one.get("device_name", "GPU"), one.get("compute_capability", (0, 0))) for one in details]
    if name == "jax":
        import jax

        found = []
        for one in jax.devices():
            if one.platform != "cpu":
                unknown = "99" if one.platform == "tpu" else "0"  # every tensor processor computes bfloat16
                capability = str(getattr(one, "compute_capability", unknown)).split(".")
                found.append((one.device_kind, tuple(map(int, capability))))
        return found
    return []


def choose_precision(wanted: str) -> str:
    """float32 or mixed_bfloat16; "auto" takes bfloat16 if the hardware computes it, and does not emulate it."""
    if wanted != "auto":
        return wanted
    capabilities = [capability for _, capability in accelerators()]
    flags = {"avx512_bf16", "amx_bf16"} & set(processor()["flags"])
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()  # the library may be told to use less
    if limit not in ("ALL", "DEFAULT") and not re.search("BF16|AMX", limit):
        flags = set()
    native = min(capabilities) >= (8, 0) if capabilities else flags  # NVIDIA's Ampere and later
    return "mixed_bfloat16" if native else "float32"


def precision_for(precision: str, sides: tuple[int, ...], depth: int = 3) -> str:
    """The precision in which to train a network of `depth` poolings on images of these sides.

    On processors, oneDNN's gradient of a 3D kernel in bfloat16 reads foreign memory if volumes are 2 voxels deep at the
    coarsest level. With TensorFlow 2.21 and AVX-512 the gradient was NaN or several times the true value. Depths of 1,
    3 to 6, 8, 16 and 32 were right.
    """
    keras = import_keras()
    wrong = precision == "mixed_bfloat16" and len(sides) == 3 and sides[0] // 2**depth == 2
    if not wrong or keras.backend.backend() != "tensorflow" or accelerators():
        return precision
    print("In float32: on processors, bfloat16 gradients are wrong where volumes get 2 voxels deep inside the network.")
    keras.config.set_dtype_policy("float32")
    return "float32"


@functools.cache
def processor() -> dict:
    """Name, family and model of the processor, cores that this process may use, and flags for kinds of arithmetic."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    fields = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "family_model": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "flags": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
    }


def device() -> str:
    """Name of the graphics or tensor processors, if Keras is loaded and sees some, else of the processor."""
    found = accelerators() if "keras" in sys.modules else []
    return f"{len(found)} x {found[0][0]}" if found else f"{processor()['processor']}, {processor()['cores']} cores"


def provenance() -> dict[str, str]:
    """Versions, device and git commit, for tags and result files."""
    loaded = sys.modules.get("keras")
    name = loaded.backend.backend() if loaded else os.environ.get("KERAS_BACKEND", "tensorflow")
    tags = {"python.version": platform.python_version(), "platform": platform.platform(), "keras.backend": name}
    for package in ("numpy", "mlflow", "keras", name):
        try:
            tags[f"{package}.version"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    flags = " ".join(processor()["flags"])
    return {**tags, "device": device(), "processor.flags": flags, **git_tags(ROOT, "lab/system/backend.py")}


def git_tags(folder: Path, file: str) -> dict[str, str]:
    """Commit of `folder`, and whether its files differ from it, also files that git does not track.

    Empty if git does not track `file` there: then another repository only surrounds a copy of the lab.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file)
        commit = git("rev-parse", "HEAD")
        dirty = git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.dirty": "true" if dirty else "false"}
