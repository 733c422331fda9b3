"""Which settings of a U-Net fit together: its sides, filters, depth and kernels."""


def check_network(
    input_shape, filters: int, depth: int, kernel_size: int = 3, downsampling: str = "late", num_classes: int = 1
) -> None:
    """Raise ValueError for a network that cannot be built."""
    if num_classes < 1:
        raise ValueError(f"num_classes counts the classes without the background, at least 1; got {num_classes}.")
    if len(input_shape) not in (3, 4):
        raise ValueError(f"the input shape must be (height, width, channels), or with a depth; got {input_shape}.")
    if not 1 <= filters <= 4096 or depth < 1:
        raise ValueError(f"filters must be 1 to 4096 and depth at least 1; got filters={filters}, depth={depth}.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"the kernel size must be odd and at least 1, such as 3, 5 or 7; got {kernel_size}.")
    if downsampling not in ("early", "late"):
        raise ValueError(f"downsampling must be 'early' or 'late'; got {downsampling!r}.")
    halvings = depth + (downsampling == "early")
    factor, sides = 2**halvings, tuple(input_shape[:-1])
    if any(side is not None and (side < factor or side % factor) for side in sides):
        near = tuple(max(factor, round(side / factor) * factor) for side in sides)
        raise ValueError(
            f"the sides must be divisible by {factor}, because each of {halvings} poolings and strides halves them; "
            f"got {sides}. Take {near}, or another depth."
        )
