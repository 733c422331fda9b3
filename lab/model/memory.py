"""Memory of a training step, predicted from the layers; the largest patch that fits; memory in use.

    needed = training_memory(model, 2, "muon", backend.processor())["total"]            # MiB, beside the process's own
    patch, tried = largest_patch(lambda sides: build_unet((*sides, 1)), budget_gib=4)

The rules of the memory account were read from TensorFlow's allocation logs. It holds for TensorFlow on an x86 processor
with oneDNN: `caveat` says where it does not.
"""

import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lab.model.costs import (
    ITEM_BYTES,
    layer_costs,
    layer_kind,
    read_by,
    tensor_bytes,
    training_multiply_adds,
    weight_count,
)
from lab.system import backend

__all__ = ["caveat", "largest_patch", "layer_costs", "training_memory", "training_multiply_adds"]
__all__ += ["free_memory", "peak_memory", "resident_memory"]

MIB, GIB = 2**20, 2**30
SLOTS = {"adam": 2, "muon": 2, "sgd": 0}  # variables that the optimizer keeps for each weight
LOSS_COPIES = 8  # tensors of the mask's size that cross-entropy, Dice, scores and the gradient hold at once
BATCH_COPIES = 3  # of a batch outside the pool: in NumPy, in transfer, and as the backend's tensors
# Tracing and compiled kernels in MiB: at the start, and for each layer with a kernel. Fitted to networks of 8 to 23
# such layers with hardly any voxels; Muon's row has the lab's four scores in it.
RUNTIME_MIB = {"adam": (11, 4.4), "muon": (24, 5.8), "sgd": (11, 4.4)}
AMX_MIB = 8  # more MiB of kernels in bfloat16, if the processor has AMX
SLOT = "slot "  # start of the names of the optimizer's tensors, which stay after the step
# A training may take this many times its prediction: the order of threads changes each time, and the pool keeps gaps.
# It covers every row of benchmarks/results/conv3d_study.json, of which the worst took 1.24 times its prediction.
MARGIN = 1.3


# What is free


def check_room(num_bytes: float, what: str) -> None:
    """Raise ValueError if `num_bytes` are more than the memory that is free now."""
    free = free_memory()
    if num_bytes > free:
        raise ValueError(
            f"{what} would take {num_bytes / GIB:,.1f} GiB of memory, of which {free / GIB:.1f} GiB are free; "
            "take fewer or smaller ones."
        )


def check_step(model, batch_size: int, optimizer: str, what: str) -> None:
    """Raise ValueError if a training step of a network with fixed sides takes more memory than is free."""
    needed = training_memory(model, batch_size, optimizer, backend.processor())["total"]
    check_room(needed * MIB, f"a training step of {batch_size} {what}")


# Memory of a training step


def training_memory(
    model, batch_size: int = 1, optimizer: str = "adam", processor: dict | None = None
) -> dict[str, float]:
    """Predict the peak memory of training steps from the layers alone, in MiB.

    The prediction is the largest resident memory of the process minus its resident memory after `import keras` and
    before the model is built: add the latter (about 700 MiB with TensorFlow) for the whole process. The parts:

    - `variables`: weights and the optimizer's slots, float32.
    - `live`: the largest sum of activations, gradients, precision casts, batch and loss that are alive at once, by
      replaying the step (see `step_operations`, `in_order` and `step_events`).
    - `pool`: memory that TensorFlow's pool takes from the system for both (see `pool_bytes`).
    - `workspace`: memory that oneDNN allocates beside the pool (see `workspace_bytes`).
    - `batch`: the images and masks outside the pool.
    - `runtime`: tracing, threads and compiled kernels, by the number of layers.
    - `total`: pool + workspace + batch + runtime.

    Args:
        model: a functional Keras model with a fixed input shape, float32 or mixed_bfloat16.
        batch_size: images per step.
        optimizer: a key of SLOTS.
        processor: "cores" and "flags" as `backend.processor()` gives them; by default all cores and no AMX. It
            matters in bfloat16 only.
    """
    cores, flags = (processor or {}).get("cores") or os.cpu_count() or 1, (processor or {}).get("flags", ())
    weights = [(weight.path, math.prod(weight.shape) * ITEM_BYTES["float32"]) for weight in model.weights]
    late = optimizer == "muon"  # its many small products keep the thread busy that the filter gradients wait for
    first, next_one = (
        step_events(in_order(step_operations(model, batch_size, slots), late)) for slots in (SLOTS[optimizer], 0)
    )
    short, amx = any(layer.compute_dtype == "bfloat16" for layer in model.layers), "amx_bf16" in flags
    start, each = RUNTIME_MIB[optimizer]
    ends = (model.layers[0].output, model.layers[-1].output)
    parts = {
        "variables": sum(size for _, size in weights) * (1 + SLOTS[optimizer]),
        "live": largest_sum(next_one),
        "pool": pool_bytes([*weights, *first, *next_one]),  # the second step uses chunks that the first has cut
        "workspace": workspace_bytes(model, cores, amx),
        "batch": BATCH_COPIES * sum(tensor_bytes(tensor, batch_size, "float32") for tensor in ends),
        "runtime": (start + each * sum(hasattr(layer, "kernel") for layer in model.layers)) * MIB,
    }
    parts["runtime"] += AMX_MIB * MIB if short and amx else 0
    parts["total"] = sum(parts[name] for name in ("pool", "workspace", "batch", "runtime"))
    return {name: size / MIB for name, size in parts.items()}


def caveat(backend: str | None = None) -> str | None:
    """Why the account of memory does not hold here, in a sentence; None where it does. `backend` is Keras's."""
    import keras

    backend = backend or keras.backend.backend()
    if backend != "tensorflow":
        return f"The memory account is that of TensorFlow; {backend} may take several times as much."
    if keras.distribution.list_devices("gpu"):
        return "The memory account is that of a processor; a graphics card allocates its memory in another way."
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"The memory account is that of oneDNN on x86; on {platform.machine()} a step may take far more."
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() in ("0", "false"):
        return (
            f"TF_ENABLE_ONEDNN_OPTS={os.environ['TF_ENABLE_ONEDNN_OPTS']} switches oneDNN off, and the memory "
            "account is that of oneDNN: a step may take several times as much. Unset it."
        )
    return None


def step_operations(model, batch_size: int, slots: int = 0) -> Iterator[tuple[dict, list, bool]]:
    """Yield the operations of a training step: ({tensor it writes: bytes}, [tensors it reads], on another thread).

    TensorFlow's allocation log shows which tensors the backward pass needs. A convolution needs its input and, for the
    gradient of the ReLU, its output; ReLU and bias work in place, so that a block has one tensor and not three. A
    pooling needs its input and its output; concatenation needs nothing. The gradient of a layer's weights and their
    update run on another thread, beside the backward pass of the layers before. The first step also makes `slots`.
    """
    layers = model.layers
    mask_bytes = tensor_bytes(layers[-1].output, batch_size)
    for layer in layers:
        writes = {layer.name: tensor_bytes(layer.output, batch_size)}
        if layer_kind(layer) == "input":
            yield {**writes, "target": mask_bytes}, [], False
            continue
        for tensor, _ in read_by(layer, model):
            if tensor.dtype != layer.compute_dtype:
                writes[f"{layer.name} cast"] = tensor_bytes(tensor, batch_size, layer.compute_dtype)
        if layer.weights and layer.compute_dtype != "float32":
            writes[f"{layer.name} weights cast"] = weight_count(layer) * ITEM_BYTES[layer.compute_dtype]
        yield writes, [before.name for _, before in read_by(layer, model)], False

    name = layers[-1].name
    yield (
        {**{f"loss {i}": mask_bytes for i in range(LOSS_COPIES - 1)}, f"d {name}": mask_bytes},
        [name, "target"],
        False,
    )
    has_gradient = set()
    for layer in reversed(layers):
        kind, gradient = layer_kind(layer), f"d {layer.name}"
        if kind == "input":
            continue
        if getattr(layer, "activation", None) is not None and layer.activation.__name__ != "linear":
            yield {}, [layer.name, gradient], False  # in place
        writes, needed = {}, [layer.name] if kind == "pool" else []
        for tensor, before in read_by(layer, model):
            cast = tensor.dtype != layer.compute_dtype
            if kind != "other":
                needed.append(f"{layer.name} cast" if cast else before.name)
            if layer_kind(before) == "input":
                continue  # the gradient of the images is not needed
            if cast:
                writes[f"d {layer.name} cast"] = tensor_bytes(tensor, batch_size, layer.compute_dtype)
            # The second gradient of a tensor that two layers read is added to the first.
            added = " added" if before.name in has_gradient else ""
            writes[f"d {before.name}{added}"] = tensor_bytes(tensor, batch_size)
            has_gradient.add(before.name)
        cast = [f"{layer.name} weights cast"] if layer.weights and layer.compute_dtype != "float32" else []
        yield writes, [gradient, *cast, *([] if layer.weights else needed)], False
        if layer.weights:
            size = weight_count(layer) * ITEM_BYTES["float32"]
            yield {f"dw {layer.name}": size}, [gradient, *needed], True
            stay = {f"{SLOT}{i} {layer.name}": size for i in range(slots)}
            yield {f"update {i} {layer.name}": size for i in range(2)} | stay, [f"dw {layer.name}"], True


def in_order(operations: Iterable, late: bool) -> Iterator[tuple[dict, list]]:
    """Put the other thread's operations where they run: one layer later, or, if `late`, after all others."""
    waiting = []
    for writes, reads, elsewhere in operations:
        if elsewhere:
            waiting.append((writes, reads))
            continue
        yield writes, reads
        if writes and not late:
            yield from waiting
            waiting = []
    yield from waiting


def step_events(operations: Iterable) -> list[tuple[str, int | None]]:
    """Turn operations into requests: (tensor, bytes) when it is written, (tensor, None) after its last use."""
    operations = list(operations)
    last = {name: i for i, (writes, reads) in enumerate(operations) for name in (*writes, *reads)}
    events = []
    for i, (writes, reads) in enumerate(operations):
        events += writes.items()
        used = {**dict.fromkeys(reads), **writes}
        events += [(name, None) for name in used if last[name] == i and not name.startswith(SLOT)]
    return events


def largest_sum(events: Iterable) -> int:
    """The most bytes that are alive at once."""
    largest = 0
    alive: dict = {}
    for name, size in events:
        if size is None:
            del alive[name]
        else:
            alive[name] = size
            largest = max(largest, sum(alive.values()))
    return largest


def pool_bytes(events: Iterable) -> int:
    """Replay requests through TensorFlow's "best fit with coalescing" pool; return the bytes that it touches.

    The pool takes regions of 2, 4, 8, ... MiB from the system (more where one request is larger) and gives none back.
    A request gets the smallest free chunk that holds it; the chunk is cut if it is at least twice as large, or 128 MiB
    larger; free neighbours are joined. Memory that was never handed out is never resident.
    """
    regions: list[list] = []  # a region is a list of chunks [offset, size, is it free]
    touched = []
    place: dict = {}
    next_region = 2 * MIB
    for name, size in events:
        if size is None:
            region, chunk = place.pop(name)
            chunk[2] = True
            joined: list[list] = []
            for chunk in regions[region]:
                if joined and joined[-1][2] and chunk[2]:
                    joined[-1][1] += chunk[1]
                else:
                    joined.append(chunk)
            regions[region] = joined
            continue
        need = max(1, math.ceil(size / 256)) * 256
        fits = [(c[1], r, c) for r, chunks in enumerate(regions) for c in chunks if c[2] and c[1] >= need]
        if fits:
            _, region, chunk = min(fits)
        else:
            grown = next_region < need
            while next_region < need:
                next_region *= 2
            region, chunk = len(regions), [0, next_region, True]
            regions.append([chunk])
            touched.append(0)
            if not grown:
                next_region *= 2
        if chunk[1] >= 2 * need or chunk[1] - need >= 128 * MIB:
            chunks = regions[region]
            chunks.insert(chunks.index(chunk) + 1, [chunk[0] + need, chunk[1] - need, True])
            chunk[1] = need
        chunk[2] = False
        place[name] = region, chunk
        touched[region] = max(touched[region], chunk[0] + size)
    return sum(touched)


def workspace_bytes(model, cores: int, amx: bool) -> int:
    """Bytes that oneDNN allocates outside the pool: the two largest scratch areas, because two layers may run at once.

    With AMX they are the three largest, as the measured peaks show.
    A convolution rearranges its weights. In bfloat16 its filter gradient also transposes, for every thread, some
    channels of its input and its output, one volume at a time. With AVX-512 these are 16 of each, and none of an input
    of one channel; with AMX they are up to 32, in steps of 16, and the rows of the input are padded to multiples of 32
    voxels. (The allocations agree to the byte.)
    """
    areas = [0, 0]
    for layer in model.layers:
        kind = layer_kind(layer)
        if kind not in ("conv", "transposed"):
            continue
        area = weight_count(layer) * ITEM_BYTES[layer.compute_dtype]
        if layer.compute_dtype == "bfloat16":
            read, written = (layer.input, layer.output) if kind == "conv" else (layer.output, layer.input)
            (*rows, width, channels), (*rows_out, width_out, channels_out) = read.shape[1:], written.shape[1:]
            if amx:
                channels, channels_out = (math.ceil(min(n, 32) / 16) * 16 for n in (channels, channels_out))
                width = math.ceil((width + layer.kernel.shape[-3] - 1) / 32) * 32
            else:
                channels, channels_out = min(16, channels) if channels > 1 else 0, 16
            values = channels * math.prod(rows) * width + channels_out * math.prod(rows_out) * width_out
            area += cores * values * ITEM_BYTES["bfloat16"]
        areas.append(area)
    return sum(sorted(areas)[-3 if amx else -2 :])


# Planning


def largest_patch(
    build: Callable,
    budget_gib: float,
    batch_size: int = 1,
    optimizer: str = "adam",
    processor: dict | None = None,
    shape: tuple = (None, None, None),
    divisor: int = 16,
) -> tuple[tuple[int, ...] | None, list[dict]]:
    """Find the largest patch whose training step is predicted to fit into a budget, with MARGIN to spare.

    Patches are cubes (squares) of sides `divisor`, 2 `divisor`, ..., cut off where the data end.

    Args:
        build: sides -> model of that input size.
        budget_gib: memory for the step, beside the memory of the process before the model is built.
        batch_size, optimizer, processor: as for `training_memory`.
        shape: of the data, (D, H, W) or (H, W), rounded up to multiples of `divisor`; None: no limit.
        divisor: every side is a multiple of it.

    Returns:
        The sides, None if not even the smallest patch fits, and a row for each patch that was tried, smallest first:
        `sides`, `gib` with the margin, `fits`.
    """
    longest: list = [math.inf if side is None else math.ceil(side / divisor) for side in shape]
    tried: dict[int, dict] = {}

    def fits(count: int) -> bool:
        sides = tuple(divisor * min(count, most) for most in longest)
        gib = MARGIN * training_memory(build(sides), batch_size, optimizer, processor)["total"] / 1024
        tried[count] = {"sides": sides, "gib": gib, "fits": gib <= budget_gib}
        return tried[count]["fits"]

    small, large = 0, 1  # sides in units of `divisor`: one that fits, and one to try
    while fits(large):
        small = large
        if large == max(longest):
            break
        large = min(2 * large, max(longest))
    while large - small > 1:
        middle = (small + large) // 2
        small, large = (middle, large) if fits(middle) else (small, middle)
    return (tried[small]["sides"] if small else None), [tried[count] for count in sorted(tried)]


# Memory in use, in bytes


def resident_memory() -> int:
    """The memory that this process holds now."""
    import psutil

    return psutil.Process().memory_info().rss


def free_memory() -> int:
    """The memory that the system could give to a process now."""
    import psutil

    return psutil.virtual_memory().available


def peak_memory(status: Path = Path("/proc/self/status")) -> int:
    """The most memory that this process has held."""
    if status.exists():  # Linux. Its `getrusage` would count the process that started this one, too.
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB
