"""What differs between machines: environment, precision, determinism."""

import os
import platform
from pathlib import Path


def prepare_tensorflow() -> None:
    """Set what TensorFlow reads when it is imported; what the user has set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # its notes on drivers that are not there; exceptions stay
    # TensorFlow's own memory pool: with the system's, every step maps and clears its memory anew (20% slower).
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN's convolutions, which TensorFlow takes by itself only where a processor has AVX-512 VNNI or the like:
        # with AVX2 alone, an epoch takes three quarters of the time.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def choose_precision(wanted: str) -> str:
    """float32 or mixed_bfloat16; "auto" takes bfloat16 where the hardware computes it, not where it emulates it."""
    import keras

    if wanted != "auto":
        return wanted
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        found = [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]
    elif backend == "jax":
        import jax

        if jax.default_backend() == "tpu":
            return "mixed_bfloat16"
        found = [getattr(device, "compute_capability", "0") for device in jax.devices() if device.platform == "gpu"]
        found = [tuple(int(part) for part in str(capability).split(".")) for capability in found]
    else:
        import torch

        found = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if found:
        native = min(found) >= (8, 0)  # NVIDIA's Ampere and later
    else:
        cpuinfo = Path("/proc/cpuinfo")
        flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
        native = "avx512_bf16" in flags or "amx_bf16" in flags
    return "mixed_bfloat16" if native else "float32"


def make_deterministic() -> None:
    """Ask the backend for operations that give the same bits every time."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    else:
        print(f"--deterministic is TensorFlow's; the backend is {keras.backend.backend()}: seeds alone are set.")
