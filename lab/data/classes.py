"""Which values of the masks mean which class: one mapping for the whole folder.

    classes = find_classes([MaskValues(path, Counter(values.flat)), ...], names=None, ignore=None, folder=masks)
    labels = classes.to_labels(values, path)         # uint8: 0 background, 1 to K the classes, 255 not labelled
    values = classes.to_values(labels)               # values as in the user's own files

In masks of two values, black is the background and the other value, any number, is the object. More values are classes,
in rising order.
"""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

NOT_LABELLED = 255  # among labels
MOST = 32  # classes
# Colours for all kinds of colour vision (Okabe and Ito 2008), then Matplotlib's tab20. Five of tab20 are left out: they
# lie nearer than 12 (CIEDE2000) to a colour before them, such as #1f77b4 to #0072B2.
COLOURS = (
    *("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
    *("#aec7e8", "#ffbb78", "#2ca02c", "#98df8a", "#d62728", "#ff9896", "#9467bd", "#c5b0d5"),
    *("#8c564b", "#c49c94", "#f7b6d2", "#7f7f7f", "#c7c7c7", "#17becf", "#9edae5"),
)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes that the values of a folder's masks mean."""

    names: tuple[str, ...] = ("object",)  # of the classes 1 to K
    values: tuple[int, ...] = (0, 1)  # in the files: the background's, then the classes'; a colour is 0xRRGGBB
    kind: str = "grey"  # "grey": numbers; "palette": numbers with `palette`; "colour"
    palette: tuple[int, ...] | None = None  # 768 numbers: red, green, blue of 0 to 255
    ignore: int | None = None  # the value of pixels that are not labelled

    @property
    def num(self) -> int:
        """K, the number of classes without the background."""
        return len(self.names)

    @property
    def colours(self) -> list[tuple[int, ...]]:
        """Red, green and blue of each class, 0 to 255: those of the masks, if they have colours."""
        if self.kind == "colour":
            return [_rgb(value) for value in self.values[1:]]
        if self.kind == "palette" and self.palette:
            return [tuple(self.palette[3 * value : 3 * value + 3]) for value in self.values[1:]]
        return [_rgb(int(COLOURS[k % len(COLOURS)][1:], 16)) for k in range(self.num)]

    @property
    def two_valued(self) -> bool:
        """Whether a mask holds only black and one other value, which may be any number."""
        return self.num == 1 and self.values[0] == 0 and self.ignore is None

    @property
    def with_values(self) -> str:
        """For a sentence: background (0), liver (10), spleen (20)."""
        pairs = zip(("background", *self.names), map(self.shown, self.values), strict=True)
        return ", ".join(f"{name} ({value})" for name, value in pairs)

    def to_labels(self, values: np.ndarray, path: Path) -> np.ndarray:
        """Values of the file `path` -> uint8 labels (see the top); ValueError for a value that is no class."""
        if self.two_valued:
            return (values != 0).astype(np.uint8)
        value_of = dict(enumerate(self.values))
        if self.ignore is not None:
            value_of[NOT_LABELLED] = self.ignore
        labels, known = np.zeros(values.shape, np.uint8), np.zeros(values.shape, bool)
        for label, value in value_of.items():
            here = values == value
            labels[here] = label
            known |= here
        if not known.all():
            strange, classes = values[~known].flat[0], ", ".join(map(self.shown, self.values))
            raise ValueError(f"{path}: it holds {self.shown(strange)}, where {classes} are the classes.")
        return labels

    def to_values(self, labels: np.ndarray) -> np.ndarray:
        """Labels 0 to K -> the values of the user's files, of the smallest unsigned type; colours are uint32."""
        kind = np.min_scalar_type(max(self.values))
        return np.array(self.values, kind)[labels]

    def shown(self, value) -> str:
        """A value as the user knows it: 85, or #ff0000."""
        return listed([value], self.kind)

    def settings(self) -> dict[str, str]:
        """Settings that a resumed training must have again, beside the labels; none for one class."""
        return {} if self.num == 1 else {"class_names": ", ".join(self.names)}

    def stored(self) -> dict:
        """Entries of the model file; none for one class without a name, of black and one other value."""
        return {} if self.names == ONE.names and self.ignore is None else {"classes": dataclasses.asdict(self)}

    def describe(self, samples: Sequence) -> str:
        """One line: each class with its value, its share of the pixels, and the number of samples that hold it."""
        counts = np.sum([sample.counts for sample in samples], axis=0)
        rows = []
        for label, (name, value) in enumerate(zip(("background", *self.names), self.values, strict=True)):
            num = sum(sample.counts[label] > 0 for sample in samples)
            rows.append(f"{name} ({self.shown(value)}) {counts[label] / counts.sum():.2%} in {num}")
        if counts[NOT_LABELLED]:
            rows.append(f"not labelled {counts[NOT_LABELLED] / counts.sum():.2%}")
        return f"Classes, with their share of the pixels and how many of {len(samples)} hold them: {'; '.join(rows)}."


ONE = Classes()  # black, and one other value


@dataclasses.dataclass(frozen=True)
class MaskValues:
    """The values that one mask holds."""

    path: Path
    counts: Counter  # value -> pixels
    kind: str = "grey"  # as in `Classes`
    palette: tuple[int, ...] | None = None
    one_region_each: bool = False  # each value but 0 is one connected region, as the number of an object is
    between: frozenset = frozenset()  # values with nine tenths of the pixels between a lower and a higher neighbour


def find_classes(
    masks: Sequence[MaskValues], names: Sequence[str] | None = None, ignore: int | None = None, folder: Path = Path()
) -> Classes:
    """The classes of a folder of masks.

    Args:
        masks: the values of each mask.
        names: of the classes, in the order of their values; by default those in a file of `folder`.
        ignore: the value of pixels that are not labelled.
        folder: of the masks; `dataset.json` (nnU-Net), `labelmap.txt` (CVAT) or a label file of ITK-SNAP in it names
            classes.

    Raises:
        ValueError: for masks that do not hold classes: with too many values, soft edges, numbers of instances, or of
            different kinds; for a wrong number of names.
    """
    present = sorted(set().union(*(mask.counts for mask in masks)))
    one_each = all(len(mask.counts.keys() - {0}) <= 1 for mask in masks)
    if one_each and names is None and (len({mask.kind for mask in masks}) > 1 or set(present) <= {0, 1, 255}):
        return dataclasses.replace(ONE, ignore=ignore)  # black and one other value in each, of any kind
    first = masks[0]
    for mask in masks:
        if mask.kind != first.kind:
            raise ValueError(f"{first.path} holds {first.kind} values, {mask.path} {mask.kind} ones: save all alike.")
    kind, palette = first.kind, first.palette
    voc = palette is not None and palette[3:6] == (128, 0, 0) and palette[765:768] == (224, 224, 192)
    if ignore is None and voc and NOT_LABELLED in present:  # as PASCAL VOC marks pixels that are not labelled
        ignore = NOT_LABELLED
    values = [value for value in present if value != ignore]
    if sum(value != 0 for value in values) < 2 or (len(values) == len(names or ()) and 0 not in values):
        values = [0, *(value for value in values if value != 0)]  # the background, also where no pixel belongs to it
    if len(values) == 1:
        return dataclasses.replace(ONE, ignore=ignore)  # empty masks
    if len(values) > 2 and values[0] < 0:
        raise ValueError(f"{_holding(masks, values[0])} holds {values[0]}: the values of classes are 0 or more.")
    if names is None and len(values) > 2:
        _refuse_soft(masks, values)
        _refuse_instances(masks, values)
        if ignore is None and kind == "grey" and values[-1] == NOT_LABELLED and values[-2] <= MOST:
            raise ValueError(
                f"masks hold {listed(values)} ({_holding(masks, NOT_LABELLED)}): 255 may mean that a pixel is not "
                f"labelled, or be a class. Give --ignore 255 for the former, or --classes with {len(values) - 1} names "
                "for the latter."
            )
    shown = [listed([value], kind) for value in values[1:]]
    if names is None:
        other = ["object"] if len(shown) == 1 else [f"class {value.lstrip('#')}" for value in shown]
        names = list(map(names_in(folder).get, values[1:], other))
    elif len(names) != len(shown):
        raise ValueError(
            f"--classes takes a name for each value of the masks except the background's, here {len(shown)} "
            f"({', '.join(shown)}, the last one in {_holding(masks, values[-1])}); got {len(names)}: {' '.join(names)}."
        )
    check_names(names)
    return Classes(tuple(names), tuple(map(int, values)), kind, palette, ignore)


def _holding(masks: Sequence[MaskValues], value: int) -> Path:
    """The first mask that holds a value."""
    return next((mask.path for mask in masks if value in mask.counts), Path())


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for names of classes that MLflow's keys cannot hold, or that come twice."""
    for name in names:
        if not re.fullmatch(r"[\w][\w. -]*", name) or name.strip() != name:
            raise ValueError(f"a class's name is of letters, digits, spaces and _ . -; got {name!r}.")
        if list(names).count(name) > 1:
            raise ValueError(f"the name {name!r} is given to two classes; give each another name.")


def _refuse_soft(masks, values):
    """Raise ValueError for values that JPEG or soft edges have made."""
    for mask in masks:
        if mask.path.suffix.lower() in (".jpg", ".jpeg") and len(mask.counts) > 2:
            raise ValueError(
                f"{mask.path} is a JPEG, which changes values near edges ({listed(sorted(mask.counts))} are in it); "
                "save masks as PNG."
            )
    soft = set().union(*(mask.between for mask in masks)) & set(values[1:-1])
    if soft:
        mask = next(mask for mask in masks if mask.between & soft)
        raise ValueError(
            f"{mask.path} has soft edges: {listed(sorted(mask.between & soft))} stand only between a lower and a "
            "higher value. Save masks without smoothing (no anti-aliasing, nearest neighbour where they are resized), "
            "or give --classes with their names if these are classes."
        )


def _refuse_instances(masks, values):
    """Raise ValueError for more than MOST classes, or for values that number the objects."""
    most = max(masks, key=lambda mask: len(mask.counts))
    if len(values) > MOST + 1:
        raise ValueError(
            f"masks hold {len(values)} values ({most.path}: {listed(sorted(most.counts))}), where at most {MOST} "
            "classes and a background are expected. JPEG and soft edges make values between classes: save PNG without "
            "smoothing. If each object has its own number, make all numbers one: this lab finds classes, not "
            "instances."
        )
    tops = [max(mask.counts) for mask in masks]
    counted = all(set(mask.counts) | {0} == set(range(top + 1)) for mask, top in zip(masks, tops, strict=True))
    single = all(mask.one_region_each for mask in masks) and len(set(tops)) > 1
    if counted and len(masks) >= 3 and (single or len(set(tops)) > max(3, len(masks) // 2)):
        raise ValueError(
            f"the values of the masks grow from file to file (1 to {min(tops)} in one, 1 to {max(tops)} in "
            f"{most.path}): they seem to number the objects. Make all numbers one (this lab finds classes, not "
            "instances), or give --classes with a name for each value."
        )


def listed(values, kind: str = "grey", most: int = 6) -> str:
    """The first values, for a sentence."""
    shown = [f"#{value:06x}" if kind == "colour" else f"{value:g}" for value in values[:most]]
    return ", ".join(shown) + (f" and {len(values) - most} more" if len(values) > most else "")


def _rgb(value: int) -> tuple[int, int, int]:
    return value >> 16, value >> 8 & 255, value & 255


# Names that annotation programs write


def names_in(folder: Path) -> dict[int, str]:
    """Value, or colour as 0xRRGGBB, -> name, from the first file in `folder` that names classes.

    Names come without the letters that MLflow's keys cannot hold.
    """
    readers: dict[str, Callable[[str], dict[int, str]]] = {
        "dataset.json": _names_of_nnunet,
        "labelmap.txt": _names_of_cvat,
        "*.txt": _names_of_itksnap,
        "*.label": _names_of_itksnap,
    }
    for pattern, reader in readers.items():
        for path in sorted(folder.glob(pattern)):
            names = reader(path.read_text(errors="replace"))
            if names:
                return {value: re.sub(r"[^\w. -]", " ", name).strip() for value, name in names.items() if name.strip()}
    return {}


def _names_of_nnunet(text: str) -> dict[int, str]:
    """`{"labels": {"liver": 1}}`; in older files {"1": "liver"}."""
    try:
        labels = json.loads(text)["labels"]
        pairs = [(name, value) if isinstance(value, int) else (value, name) for name, value in labels.items()]
        return {int(value): str(name) for name, value in pairs}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _names_of_cvat(text: str) -> dict[int, str]:
    """Lines `liver:255,0,0::`."""
    rows = re.findall(r"^([^#:\n][^:\n]*):(\d+),(\d+),(\d+):", text, re.MULTILINE)
    return {int(r) << 16 | int(g) << 8 | int(b): name for name, r, g, b in rows}


def _names_of_itksnap(text: str) -> dict[int, str]:
    """Lines `1  255 0 0  1 1 1  "liver"`."""
    rows = re.findall(r'^\s*(\d+)\s+\d+\s+\d+\s+\d+\s+[\d.]+\s+\d\s+\d\s+"(.*)"\s*$', text, re.MULTILINE)
    return {int(value): name for value, name in rows if int(value)}


def itksnap_labels(classes: Classes) -> str:
    """A label file of ITK-SNAP for the classes, so that a viewer shows their names and colours."""
    rows: list[tuple] = [(0, (0, 0, 0), 0, "Clear Label")]
    rows += [(v, c, 1, n) for v, c, n in zip(classes.values[1:], classes.colours, classes.names, strict=True)]
    return "".join(
        f'{value:5d} {red:5d} {green:4d} {blue:4d} {seen:8d} {seen:2d} {seen:2d}    "{name}"\n'
        for value, (red, green, blue), seen, name in rows
    )
