"""Arithmetic and memory of a training step, predicted from the layers."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

MIB, GIB = 2**20, 2**30
ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
SLOTS = {"adam": 2, "sgd": 0}  # variables that the optimizer keeps for each weight
LOSS_COPIES = 7  # tensors of the mask's size that cross-entropy and its gradient hold at once (TensorFlow's log)
RUNTIME_MIB = 75  # makes the largest relative error smallest over 13 configurations, none of them in the study's grid


def layer_costs(model, batch_size: int = 1) -> list[dict]:
    """Account for each layer of a functional Keras model with a fixed input shape, 1D, 2D or 3D.

    Multiply-adds of one forward pass: a convolution has (output voxels) * k^n * C_in / groups * C_out, a transposed one
    (input voxels) * k^n * C_in * C_out (what padding crops included), a dense layer (rows) * C_in * C_out. Biases,
    activations and pooling count as 0: they are one operation per value. A training step
    costs about three forward passes.
    Example: 3^3 kernels, 1 -> 8 channels, at 32^3 voxels: 32768 * 27 * 1 * 8 = 7,077,888.

    Returns:
        One dict per layer: `name`, `type`, `output_shape` (with the batch), `parameters`, `multiply_adds`,
        `activation_bytes` (of the layer's output in its own precision).

    Raises:
        ValueError: for an axis without a size, or a layer with a kernel of another kind.
    """
    rows = []
    for layer in model.layers:
        shape = (batch_size, *layer.output.shape[1:])
        if None in shape:
            raise ValueError(
                f"layer {layer.name} has the output shape {shape}; build the model with a fixed input shape."
            )
        kind = layer_kind(layer)
        multiply_adds = 0
        if kind in ("conv", "dense"):  # kernel (k, ..., C_in / groups, C_out)
            multiply_adds = math.prod(shape[:-1]) * math.prod(layer.kernel.shape)
        elif kind == "transposed":  # kernel (k, ..., C_out, C_in)
            multiply_adds = batch_size * math.prod(layer.input.shape[1:-1]) * math.prod(layer.kernel.shape)
        elif hasattr(layer, "kernel"):
            raise ValueError(f"layer {layer.name} is a {type(layer).__name__}, whose multiply-adds are not known here.")
        rows.append(
            {
                "name": layer.name,
                "type": type(layer).__name__,
                "output_shape": shape,
                "parameters": layer.count_params(),
                "multiply_adds": multiply_adds,
                "activation_bytes": tensor_bytes(layer.output, batch_size),
            }
        )
    return rows


def layer_kind(layer) -> str:
    """Which of its tensors a layer's backward pass needs: one word per case."""
    from keras import layers

    if isinstance(layer, layers.Conv1D | layers.Conv2D | layers.Conv3D):
        return "conv"
    if isinstance(layer, layers.Conv1DTranspose | layers.Conv2DTranspose | layers.Conv3DTranspose):
        return "transposed"
    if isinstance(layer, layers.Dense):
        return "dense"
    if isinstance(layer, layers.InputLayer):
        return "input"
    return "pool" if "Pooling" in type(layer).__name__ else "other"


def tensor_bytes(tensor, batch_size: int, dtype: str | None = None) -> int:
    """Size of a symbolic tensor in bytes."""
    return batch_size * math.prod(tensor.shape[1:]) * ITEM_BYTES[dtype or tensor.dtype]


def weight_count(layer) -> int:
    """Number of values in a layer's variables."""
    return sum(math.prod(weight.shape) for weight in layer.weights)


def layer_inputs(layer) -> list:
    """The symbolic inputs of a layer, one or several, as a list."""
    return layer.input if isinstance(layer.input, list) else [layer.input]


def training_memory(model, batch_size: int = 1, optimizer: str = "adam") -> dict[str, float]:
    """Predict the peak memory of training steps from the layers alone, in MiB.

    Predicted is the largest resident memory of the process minus its resident memory after `import keras` and
    before the model is built: add the latter (some 700 MiB with TensorFlow) for the whole process. The parts:

    - `variables`: weights and the optimizer's slots, float32.
    - `live`: the largest sum of activations, gradients, precision casts, batch and loss that are alive at once, by
      replaying the step (see `step_operations` and `step_events`).
    - `pool`: what TensorFlow's pool takes from the system to serve these requests (see `pool_bytes`); holds both.
    - `workspace`: what oneDNN allocates beside the pool (see `workspace_bytes`).
    - `runtime`: tracing, threads and compiled kernels: one constant, RUNTIME_MIB.
    - `total`: pool + workspace + runtime.

    Holds for TensorFlow on an x86 processor, where oneDNN computes; float32 or mixed_bfloat16, as the model was built.
    """
    variables = [
        ((weight.path, copy), math.prod(weight.shape) * ITEM_BYTES["float32"])
        for weight in model.weights
        for copy in range(1 + SLOTS[optimizer])
    ]
    step = step_events(step_operations(model, batch_size))
    live, alive = 0, {}
    for name, size in step:
        if size is None:
            del alive[name]
        else:
            alive[name] = size
            live = max(live, sum(alive.values()))
    parts = {
        "variables": sum(size for _, size in variables),
        "live": live,
        "pool": pool_bytes([*variables, *step, *step]),  # the second step meets what the first has cut up
        "workspace": workspace_bytes(model),
    }
    parts = {name: size / MIB for name, size in parts.items()} | {"runtime": float(RUNTIME_MIB)}
    return parts | {"total": parts["pool"] + parts["workspace"] + parts["runtime"]}


def step_operations(model, batch_size: int) -> Iterator[tuple[dict, list, bool]]:
    """Yield the operations of a training step: ({tensor it writes: bytes}, [tensors it reads], filter gradient or not).

    Which tensors the backward pass needs, as TensorFlow's allocation log shows: a convolution its input and, for the
    gradient of the ReLU, its output; ReLU and bias work in place, so that a block has one tensor and not three; a
    pooling its input and its output; concatenation, nothing.
    """
    layers = model.layers
    source = {id(layer.output): layer for layer in layers}
    mask = layers[-1].output
    mask_bytes = tensor_bytes(mask, batch_size)
    for layer in layers:
        if layer_kind(layer) == "input":
            yield {layer.name: tensor_bytes(layer.output, batch_size), "target": mask_bytes}, [], False
            continue
        writes = {layer.name: tensor_bytes(layer.output, batch_size)}
        for tensor in layer_inputs(layer):
            if tensor.dtype != layer.compute_dtype:
                writes[f"{layer.name} cast"] = tensor_bytes(tensor, batch_size, layer.compute_dtype)
        if layer.weights and layer.compute_dtype != "float32":
            writes[f"{layer.name} weights cast"] = weight_count(layer) * ITEM_BYTES[layer.compute_dtype]
        yield writes, [source[id(tensor)].name for tensor in layer_inputs(layer)], False

    name = layers[-1].name
    copies = {f"loss {i}": mask_bytes for i in range(LOSS_COPIES - 1)}
    yield {**copies, f"d {name}": mask_bytes}, [name, "target"], False
    has_gradient = set()
    for layer in reversed(layers):
        kind, gradient = layer_kind(layer), f"d {layer.name}"
        if kind == "input":
            continue
        if getattr(layer, "activation", None) is not None and layer.activation.__name__ != "linear":
            yield {}, [layer.name, gradient], False  # in place
        writes, reads = {}, [gradient]
        for tensor in layer_inputs(layer):
            before = source[id(tensor)]
            cast = tensor.dtype != layer.compute_dtype
            if kind != "other":
                reads.append(f"{layer.name} cast" if cast else before.name)
            if layer_kind(before) == "input":
                continue  # nobody asks for the gradient of the images
            if cast:
                writes[f"d {layer.name} cast"] = tensor_bytes(tensor, batch_size, layer.compute_dtype)
            # The second gradient of a tensor that two layers read is added to the first.
            added = " added" if before.name in has_gradient else ""
            writes[f"d {before.name}{added}"] = tensor_bytes(tensor, batch_size)
            has_gradient.add(before.name)
        if kind == "pool":
            reads.append(layer.name)
        if layer.weights:
            writes[f"dw {layer.name}"] = weight_count(layer) * ITEM_BYTES["float32"]
            if layer.compute_dtype != "float32":
                reads.append(f"{layer.name} weights cast")
        yield writes, reads, kind in ("conv", "transposed", "dense")
    yield {}, [f"dw {layer.name}" for layer in layers if layer.weights], False  # the optimizer


def step_events(operations) -> list[tuple[str, int | None]]:
    """Turn operations into requests, in order: (tensor, bytes) when it is written, (tensor, None) after its last use.

    A filter gradient runs beside the next layer's backward pass on another thread, so what it reads is freed one later.
    """
    operations = list(operations)
    last = {name: i for i, (writes, reads, _) in enumerate(operations) for name in (*writes, *reads)}
    events, late = [], []
    for i, (writes, reads, filter_gradient) in enumerate(operations):
        events += writes.items()
        free = [(name, None) for name in {**dict.fromkeys(reads), **writes} if last[name] == i]
        if writes or i == len(operations) - 1:
            events += late
            late = []
        if filter_gradient:
            late = free
        else:
            events += free
    return events + late


def pool_bytes(events) -> int:
    """Replay requests through TensorFlow's "best fit with coalescing" pool; return the bytes that it touches.

    The pool takes regions of 2, 4, 8, ... MiB from the system (more where one request is larger) and gives none back.
    A request gets the smallest free chunk that holds it; the chunk is cut if it is at least twice as large, or 128 MiB
    larger; free neighbours are joined. Memory that was never handed out is never resident.
    """
    regions, touched, place = [], [], {}  # a region is a list of chunks [offset, size, is it free]
    next_region = 2 * MIB
    for name, size in events:
        if size is None:
            region, chunk = place.pop(name)
            chunk[2] = True
            joined = []
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


def workspace_bytes(model) -> int:
    """What oneDNN allocates outside the pool: the two largest scratch areas, because two layers may run at once.

    A convolution rearranges its weights. In bfloat16 its filter gradient also transposes, for every thread, 16 channels
    of what it reads and 16 of what it writes, one volume at a time (seen in the allocations under avx512_bf16).
    """
    areas = [0, 0]
    for layer in model.layers:
        kind = layer_kind(layer)
        if kind not in ("conv", "transposed"):
            continue
        area = weight_count(layer) * ITEM_BYTES[layer.compute_dtype]
        if layer.compute_dtype == "bfloat16":
            read, written = (layer.input, layer.output) if kind == "conv" else (layer.output, layer.input)
            channels = min(16, read.shape[-1]) if read.shape[-1] > 1 else 0  # one channel needs no transposition
            values = channels * math.prod(read.shape[1:-1]) + 16 * math.prod(written.shape[1:-1])
            area += num_threads() * values * ITEM_BYTES["bfloat16"]
        areas.append(area)
    return sum(sorted(areas)[-2:])


def num_threads() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def memory_status(key: str, file: str = "/proc/self/status") -> float:
    """An entry of Linux's memory tables in MiB: VmRSS is resident now, VmHWM its peak. NaN on other systems."""
    if not Path(file).exists():
        return math.nan
    return next(int(line.split()[1]) / 1024 for line in Path(file).read_text().splitlines() if line.startswith(key))
