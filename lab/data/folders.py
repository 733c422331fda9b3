"""Folders to train on: which image and which masks belong together; one error lists all problems.

of_class, pairs, problems = folders.pair_by_name(Path("images"), Path("masks"), pictures.find_pictures, "picture")
folders.refuse(problems, "picture")
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any


def find_files(folder: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """The files directly in `folder` with one of the suffixes, sorted by name, without those that the system hides.

    Raises ValueError if it is no folder, or holds no such file; `what` is the word for one.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder.")
    named = (path for path in folder.iterdir() if path.name.lower().endswith(suffixes))
    files = sorted(path for path in named if not path.name.startswith(".") and not path.is_dir())
    if not files:
        raise ValueError(f"the folder {folder} holds no {what} ({', '.join(suffixes)}).")
    return files


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
) -> tuple[list[str], list[tuple[Path, Any]], list[str]]:
    """Pair the images of one folder with the masks of another: NAME with NAME or NAME_mask, with any suffixes.

    Args:
        images: the folder of images.
        masks: the folder of their masks; or one that holds no mask, but a folder of masks for each class.
        find: the files of a folder, or ValueError.
        what: the word for an image in sentences: "picture" or "scan".

    Returns:
        The names of the classes, sorted, where each has a folder, else none; pairs (image, mask), sorted by name, or
        for classes (image, {class from 1 on: mask}), where a class may lack a mask; and a sentence for each file
        without a partner, for each name that comes twice, and for a folder that cannot be used.

    Raises:
        ValueError: if both are the same folder.
    """
    if images.resolve() == masks.resolve():
        raise ValueError(f"{what}s and masks must lie in two folders; both are {images}.")
    of_image, problems = _files_of(images, find, stem)
    of_class, of_mask, more = masks_by_stem(masks, find)
    problems += more
    if of_image and of_mask:  # an empty folder has its sentence already
        problems += [f"{path} has no mask in {masks}." for name, path in of_image.items() if name not in of_mask]
        unused = [] if of_class else [path for name, path in of_mask.items() if name not in of_image]
        problems += [f"{path} has no {what} in {images}." for path in unused]
    pairs = [(of_image[name], of_mask[name]) for name in sorted(of_image.keys() & of_mask.keys())]
    return of_class, pairs, problems


def masks_by_stem(folder: Path, find: Callable[[Path], list[Path]]) -> tuple[list[str], dict[str, Any], list[str]]:
    """The masks of a folder by the stems of their images.

    Returns:
        The names of the classes, sorted, if the folder holds no mask but a folder of masks for each class, else none;
        stem -> mask, or for classes stem -> {class from 1 on: mask}; and a sentence for each problem.
    """
    of_class = _class_folders(folder, find)
    if not of_class:
        return [], *_files_of(folder, find, stem_of_mask)
    of_mask: dict[str, Any] = {}
    problems = []
    for label, masks in enumerate(of_class, 1):
        files, more = _files_of(masks, find, stem_of_mask)
        problems += more
        for name, path in files.items():
            of_mask.setdefault(name, {})[label] = path
    return [masks.name for masks in of_class], of_mask, problems


def _files_of(folder, find, stem_of):
    try:
        return by_stem(find(folder), stem_of)
    except ValueError as error:
        return {}, [str(error)]


def _class_folders(masks, find):
    """The folders in `masks`, sorted by name, if it holds no mask."""
    try:
        find(masks)
    except ValueError:
        return sorted(path for path in masks.iterdir() if path.is_dir()) if masks.is_dir() else []
    return []


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
