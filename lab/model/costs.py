"""Costs of a network's layers: parameters, multiply-adds, bytes of activations; and which layer reads which tensor."""

import math

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def layer_costs(model, batch_size: int = 1) -> list[dict]:
    """Account for each layer of a functional Keras model with a fixed input shape, 1D, 2D or 3D.

    Multiply-adds of one forward pass: a convolution has (output voxels) * k^n * C_in / groups * C_out, a transposed one
    (input voxels) * k^n * C_in * C_out (cropped voxels included), a dense layer (rows) * C_in * C_out. Biases,
    activations and pooling count as 0: they are one operation per value.
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
            raise ValueError(f"layer {layer.name} gives {shape}; build the model with a fixed input shape.")
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
    """The kind of a layer, one word; it decides which tensors its backward pass needs."""
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


def read_by(layer, model) -> list[tuple]:
    """The inputs of a layer: pairs of a symbolic tensor and the layer that writes it."""
    if layer_kind(layer) == "input":
        return []
    writer = {id(other.output): other for other in model.layers}
    tensors = layer.input if isinstance(layer.input, list) else [layer.input]
    return [(tensor, writer[id(tensor)]) for tensor in tensors]
