"""Folders to train on: which image and which mask belong together; one error lists all problems.

    pairs, problems = folders.pair_by_name(Path("images"), Path("masks"), pictures.find_pictures, "picture")
    folders.refuse(problems, "picture")

A mask has the name of its image, or that name with _mask at its end.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


def stem(path: Path) -> str:
    """The name without its suffix: `cell` for cell.png, `head` for head.nii.gz."""
    return path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem


def stem_of_mask(path: Path) -> str:
    """The stem of the image that a mask belongs to: `cell` for cell.png and for cell_mask.png."""
    return stem(path).removesuffix("_mask")


def by_stem(paths: Iterable[Path], stem_of: Callable[[Path], str]) -> tuple[dict[str, Path], list[str]]:
    """Files by their stems, and a sentence for each stem that comes twice."""
    files: dict[str, Path] = {}
    problems = []
    for path in paths:
        name = stem_of(path)
        if name in files:
            problems.append(f"{path} and {files[name].name} have the same name, {name}: remove one.")
        files[name] = path
    return files, problems


def pair_by_name(
    images: Path, masks: Path, find: Callable[[Path], list[Path]], what: str
) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Pair the images of one folder with the masks of another: NAME with NAME or NAME_mask, with any suffixes.

    Args:
        images, masks: the folders.
        find: the files of a folder, or ValueError.
        what: the word for an image in sentences: "picture" or "scan".

    Returns:
        Pairs (image, mask), sorted by name, and a sentence for each file without a partner, for each name that comes
        twice, and for a folder that cannot be used.

    Raises:
        ValueError: if both are the same folder.
    """
    if images.resolve() == masks.resolve():
        raise ValueError(f"{what}s and masks must lie in two folders; both are {images}.")
    problems = []

    def files_of(folder, stem_of):
        try:
            files, doubles = by_stem(find(folder), stem_of)
        except ValueError as error:
            files, doubles = {}, [str(error)]
        problems.extend(doubles)
        return files

    of_image, of_mask = files_of(images, stem), files_of(masks, stem_of_mask)
    if of_image and of_mask:  # an empty folder has its sentence already
        problems += [f"{path} has no mask in {masks}." for name, path in of_image.items() if name not in of_mask]
        problems += [f"{path} has no {what} in {images}." for name, path in of_mask.items() if name not in of_image]
    return [(of_image[name], of_mask[name]) for name in sorted(of_image.keys() & of_mask.keys())], problems


def refuse(problems: list[str], what: str) -> None:
    """Raise ValueError with all problems, a line each, if there are any."""
    if problems:
        number = f"{count(len(problems), 'thing')} {'is' if len(problems) == 1 else 'are'}"
        raise ValueError(f"{number} wrong with the {what}s:\n  " + "\n  ".join(problems))


def count(number: int, what: str) -> str:
    """A number of things: 1 -> "1 thing", 1200 -> "1,200 things"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def describe_sides(sides: Sequence[int]) -> str:
    """Width first, as in a viewer: (H, W) = (4, 6) -> "6 x 4"."""
    return " x ".join(str(side) for side in reversed(sides))
