"""Memory of a training step, predicted from the layers; the largest patch that fits; memory in use.

    needed = training_memory(model, 2, "muon", backend.processor())["total"]            # MiB, beside the process's own
    patch, tried = largest_patch(lambda sides: build_unet((*sides, 1)), budget_gib=4)

The rules of the account were read from TensorFlow's allocation logs. It holds for TensorFlow on an x86 processor with
oneDNN: `caveat` says where it does not.
"""

import itertools
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

from lab.model.costs import ITEM_BYTES, layer_kind, read_by, tensor_bytes
from lab.model.costs import layer_costs as layer_costs
from lab.system import backend

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


def check_room(num_bytes: float, what: str) -> None:
    """Raise ValueError if `num_bytes` are more than the memory that is free now."""
    needed, free = num_bytes / GIB, free_memory() / GIB
    if needed > free:
        raise ValueError(f"{what} would take {needed:,.1f} GiB of memory, of which {free:.1f} GiB are free: take less.")


def check_step(model, batch_size: int, optimizer: str, what: str) -> None:
    """Raise ValueError if a training step of a network with fixed sides takes more memory than is free."""
    needed = training_memory(model, batch_size, optimizer, backend.processor())["total"]
    check_room(needed * MIB, f"a training step of {batch_size} {what}")


def training_memory(
    model, batch_size: int = 1, optimizer: str = "adam", processor: dict | None = None
) -> dict[str, float]:
    """Predict the peak memory of training steps from the layers alone, in MiB.

    The prediction is the largest resident memory of the process minus its resident memory after `import keras` and
    before the model is built: add the latter (about 700 MiB with TensorFlow) for the whole process. The parts:

    - `variables`: weights and the optimizer's slots, float32.
    - `live`: the largest sum of activations, gradients, precision casts, batch and loss that are alive at once.
    - `pool`: memory that TensorFlow's pool takes from the system for both (see `pool_bytes`).
    - `workspace`: memory that oneDNN allocates beside the pool (see `workspace_bytes`).
    - `batch`: the images and masks outside the pool.
    - `runtime`: tracing, threads and compiled kernels, by the number of layers.
    - `total`: pool + workspace + batch + runtime.

    Args:
        model: a functional Keras model with a fixed input shape, float32 or mixed_bfloat16.
        batch_size: images per step.
        optimizer: a key of SLOTS.
        processor: "cores" (which matter in bfloat16) and "flags" as `backend.processor()` gives them; by default all
            cores and no AMX.
    """
    processor = processor or {"cores": os.cpu_count() or 1, "flags": ()}
    amx = "amx_bf16" in processor["flags"]
    late = optimizer == "muon"  # its many small products keep the thread busy that the filter gradients wait for

    first = step_events(step_operations(model, batch_size, late, SLOTS[optimizer]))
    second = step_events(step_operations(model, batch_size, late))
    weights = [(weight.path, math.prod(weight.shape) * ITEM_BYTES["float32"]) for weight in model.weights]
    ends = (model.layers[0].output, model.layers[-1].output)
    start, each = RUNTIME_MIB[optimizer]
    parts = {
        "variables": sum(size for _, size in weights) * (1 + SLOTS[optimizer]),
        "live": max(itertools.accumulate(size for _, size in second)),
        "pool": pool_bytes([*weights, *first, *second]),  # the second step uses chunks that the first has cut
        "workspace": workspace_bytes(model, processor["cores"], amx),
        "batch": BATCH_COPIES * sum(tensor_bytes(tensor, batch_size, "float32") for tensor in ends),
        "runtime": (start + each * sum(hasattr(layer, "kernel") for layer in model.layers)) * MIB,
    }
    if amx and any(layer.compute_dtype == "bfloat16" for layer in model.layers):
        parts["runtime"] += AMX_MIB * MIB
    parts["total"] = sum(parts[name] for name in ("pool", "workspace", "batch", "runtime"))
    return {name: size / MIB for name, size in parts.items()}


def caveat() -> str | None:
    """Why the account of memory does not hold here, in a sentence; None where it does."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return f"The memory account is that of TensorFlow; {keras.backend.backend()} may take several times as much."
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


def step_operations(model, batch_size: int, late: bool, slots: int = 0) -> Iterator[tuple[dict, list]]:
    """Yield the operations of a training step in their order: ({tensor it writes: bytes}, [tensors it reads]).

    TensorFlow's allocation log shows which tensors the backward pass needs. A convolution needs its input and, for the
    gradient of the ReLU, its output; ReLU and bias work in place, so that a block has one tensor and not three. A
    pooling needs its input and its output; concatenation needs nothing. The gradient of a layer's weights and their
    update run on another thread: one layer later or, if `late`, after all others. The first step also makes `slots`.
    """
    layers = model.layers
    mask_bytes = tensor_bytes(layers[-1].output, batch_size)
    for layer in layers:
        inputs, writes = read_by(layer, model), {layer.name: tensor_bytes(layer.output, batch_size)}
        if not inputs:
            writes["target"] = mask_bytes
        for tensor, _ in inputs:
            if tensor.dtype != layer.compute_dtype:
                writes[f"{layer.name} cast"] = tensor_bytes(tensor, batch_size, layer.compute_dtype)
        if layer.weights and layer.compute_dtype != "float32":
            writes[f"{layer.name} weights cast"] = layer.count_params() * ITEM_BYTES[layer.compute_dtype]
        yield writes, [before.name for _, before in inputs]

    loss = {f"loss {i}": mask_bytes for i in range(LOSS_COPIES - 1)}
    yield {**loss, f"d {layers[-1].name}": mask_bytes}, [layers[-1].name, "target"]

    has_gradient: set[str] = set()
    elsewhere: list[tuple[dict, list]] = []
    for layer in reversed(layers):
        kind, gradient = layer_kind(layer), f"d {layer.name}"
        if kind == "input":
            continue
        if getattr(layer, "activation", None) is not None and layer.activation.__name__ != "linear":
            yield {}, [layer.name, gradient]  # in place
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
        if layer.weights:
            cast_weights = [f"{layer.name} weights cast"] if layer.compute_dtype != "float32" else []
            yield writes, [gradient, *cast_weights]
        else:
            yield writes, [gradient, *needed]
        if writes and not late:
            yield from elsewhere
            elsewhere = []
        if layer.weights:
            size = layer.count_params() * ITEM_BYTES["float32"]
            made = {f"{SLOT}{i} {layer.name}": size for i in range(slots)}
            elsewhere.append(({f"dw {layer.name}": size}, [gradient, *needed]))
            elsewhere.append(({**{f"update {i} {layer.name}": size for i in range(2)}, **made}, [f"dw {layer.name}"]))
    yield from elsewhere


def step_events(operations: Iterable) -> list[tuple[str, int]]:
    """Turn operations into requests: (tensor, bytes) when it is written, (tensor, -bytes) after its last use."""
    operations, events = list(operations), []
    sizes: dict[str, int] = {}
    last = {name: i for i, (writes, reads) in enumerate(operations) for name in (*writes, *reads)}
    for i, (writes, reads) in enumerate(operations):
        sizes |= writes
        events += writes.items()
        used = dict.fromkeys((*reads, *writes))
        events += [(name, -sizes[name]) for name in used if last[name] == i and not name.startswith(SLOT)]
    return events


def pool_bytes(events: Iterable) -> int:
    """Replay requests through TensorFlow's "best fit with coalescing" pool; return the bytes that it touches.

    The pool takes regions of 2, 4, 8, ... MiB from the system (more where one request is larger) and gives none back.
    A request gets the smallest free chunk that holds it; the chunk is cut if it is at least twice as large, or 128 MiB
    larger; free neighbours are joined. Memory that was never handed out is never resident.
    """
    free: dict[tuple[int, int], int] = {}  # (region, start of a free chunk) -> its bytes
    taken: dict[str, tuple[int, int, int]] = {}
    touched: list[int] = []  # bytes of each region
    next_region = 2 * MIB
    for name, size in events:
        if size < 0:
            region, start, length = taken.pop(name)
            length += free.pop((region, start + length), 0)
            for (other, left), bytes_left in list(free.items()):
                if (other, left + bytes_left) == (region, start):
                    start, length = left, length + free.pop((region, left))
            free[region, start] = length
            continue
        need = math.ceil(size / 256) * 256
        fitting = [(length, region, start) for (region, start), length in free.items() if length >= need]
        if not fitting:
            length = next_region
            while length < need:
                length *= 2
            next_region = length if length > next_region else 2 * length
            fitting = [(length, len(touched), 0)]
            touched.append(0)
        length, region, start = min(fitting)
        free.pop((region, start), None)
        if length >= 2 * need or length - need >= 128 * MIB:
            free[region, start + need] = length - need
            length = need
        taken[name] = region, start, length
        touched[region] = max(touched[region], start + size)
    return sum(touched)


def workspace_bytes(model, cores: int, amx: bool) -> int:
    """Bytes that oneDNN allocates outside the pool: the two largest scratch areas, because two layers may run at once.

    With AMX they are the three largest, as the measured peaks show. A convolution rearranges its weights. In bfloat16
    its filter gradient also transposes, for every thread, some channels of its input and its output, one volume at a
    time. With AVX-512 these are 16 of each, and none of an input of one channel; with AMX they are up to 32, in steps
    of 16, and the rows of the input are padded to multiples of 32 voxels. (The allocations agree to the byte.)
    """
    areas = []
    for layer in model.layers:
        kind = layer_kind(layer)
        if kind not in ("conv", "transposed"):
            continue
        area = layer.count_params() * ITEM_BYTES[layer.compute_dtype]
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
        The sides, None if not even the smallest patch fits; for each patch that was tried, the smallest first, a row of
        `sides`, `gib` with the margin, and `fits`.
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


def resident_memory() -> int:
    """The memory that this process holds now, in bytes."""
    return psutil.Process().memory_info().rss


def free_memory() -> int:
    """The memory that the system could give to a process now, in bytes."""
    return psutil.virtual_memory().available


def peak_memory(status: Path = Path("/proc/self/status")) -> int:
    """The most memory that this process has held, in bytes."""
    if status.exists():  # Linux. Its `getrusage` would count the process that started this one, too.
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB
