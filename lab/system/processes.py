"""One training on several devices and processes: how they find each other, share a batch, and end together.

On host I of N, each with JAX (tests/test_distributed.py runs two processes on loopback; no cluster was tried):

    export KERAS_BACKEND=jax KERAS_DISTRIBUTION_JOB_ADDRESSES=HOST0:1234
    export KERAS_DISTRIBUTION_NUM_PROCESSES=N KERAS_DISTRIBUTION_PROCESS_ID=I
    python unet_segmentation.py --distributed

With Slurm, a task for each card (not tried):

    KERAS_BACKEND=jax srun --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 python unet_segmentation.py --distributed

Several cards of one host need KERAS_BACKEND=jax alone (not tried).
"""

import os
import sys

from lab.system.backend import import_keras
from lab.system.errors import first_line

LOST_AFTER = 30  # seconds without an answer, after which a process of a distributed training counts as lost


def connect(distributed: bool) -> int:
    """Join the processes of a distributed training, use every device; return this process's number.

    The addresses come from Keras's variables (KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES, _PROCESS_ID), or else
    from those of Slurm, Kubernetes or a TPU host, as JAX finds them. Process 0 listens only on its own address. Without
    `distributed` the devices of this host are used, and the number is 0.

    Raises:
        ValueError: if `distributed` is wanted on another backend than JAX, or the processes do not find each other.
    """
    if not distributed and os.environ.get("KERAS_BACKEND") != "jax":
        return 0
    keras = import_keras()
    if keras.backend.backend() != "jax":
        raise ValueError(f"--distributed works on JAX, not on {keras.backend.backend()}: set KERAS_BACKEND=jax.")
    import jax

    if distributed:
        numbers = [os.environ.get(f"KERAS_DISTRIBUTION_{key}") for key in ("NUM_PROCESSES", "PROCESS_ID")]
        first = os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES", "").split(",")[0]
        if first:  # JAX would listen on every interface of the host
            os.environ.setdefault("JAX_COORDINATOR_BIND_ADDRESS", first)
        jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:  # like keras.distribution.initialize(), which has no time-out for a lost process
            num_processes, process_id = (int(number) if number else None for number in numbers)
            jax.distributed.initialize(first or None, num_processes, process_id, heartbeat_timeout_seconds=LOST_AFTER)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--distributed: the processes did not find each other ({first_line(error)[:200]}); set "
                "KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID, or use Slurm or Kubernetes."
            ) from error
    if jax.device_count() > 1:
        # No automatic shards: each process makes the whole batch and keeps its rows. The data are those of one process.
        keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    return jax.process_index()


def num_devices() -> int:
    """Number of devices that share a batch: on JAX all of all processes, otherwise 1."""
    return sys.modules["jax"].device_count() if _is_distributed() else 1


def own_rows(batch: tuple) -> tuple:
    """The rows of a global batch (arrays of N rows each) that this process's devices compute."""
    if not _is_distributed():
        return batch
    jax = sys.modules["jax"]
    share = len(batch[0]) // jax.process_count()
    rows = slice(share * jax.process_index(), share * (jax.process_index() + 1))
    return tuple(array[rows] for array in batch)


def check_shares(num: int, batch: int, what: str) -> None:
    """Raise ValueError if the devices would get unequal shares of a batch, or of the shorter last batch."""
    devices = num_devices()
    if batch % devices or num % batch % devices:
        raise ValueError(
            f"{num} {what}, in batches of {batch}, cannot be shared equally by {devices} devices; change the numbers."
        )


def local_batch(most: int) -> int:
    """The largest batch of one process, up to `most`, that its devices share equally."""
    devices = sys.modules["jax"].local_device_count() if _is_distributed() else 1
    return max(1, most // devices) * devices


def from_first_process(data: bytes) -> bytes:
    """The `data` of process 0, in every process."""
    if not several_processes():
        return data
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    length = int(broadcast_one_to_all(np.array(len(data), np.int32)))
    padded = np.zeros(length, np.int32)
    if sys.modules["jax"].process_index() == 0:
        padded[:] = np.frombuffer(data, np.uint8)
    return np.asarray(broadcast_one_to_all(padded)).astype(np.uint8).tobytes()


class LostProcess(RuntimeError):
    """Another process of a distributed training has ended; at its own end, JAX waits for it, and then aborts."""


def lost_process(error: BaseException) -> LostProcess | None:
    """The error for a failed step that several processes compute; None for any other failure."""
    if not several_processes() or type(error).__name__ not in ("JaxRuntimeError", "XlaRuntimeError"):
        return None
    reason = first_line(error)[:120]
    return LostProcess(f"another process of this training has ended ({reason}); start all of them again with --resume.")


def leave() -> None:
    """Leave the distributed training, in all processes at once: later, a busy process would make all others abort."""
    several = several_processes()
    if _is_distributed():
        sys.modules["keras"].distribution.set_distribution(None)
    if several:
        sys.modules["jax"].distributed.shutdown()


def several_processes() -> bool:
    """Whether this training is shared by several processes: JAX makes each wait for the others at its end."""
    return _is_distributed() and sys.modules["jax"].process_count() > 1


def _is_distributed() -> bool:
    keras = sys.modules.get("keras")
    return keras is not None and keras.distribution.distribution() is not None
