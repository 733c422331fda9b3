"""Find objects in your own pictures and scans with a model that one of the lab's scripts has trained.

    python predict.py outputs/unet/model.keras photo.png more_photos/
    python predict.py outputs/volume/model.keras head.nii.gz
    python predict.py models:/circles/1 photo.png

PNG, JPEG, TIFF or BMP, grey or colour, of any size. For NAME.png the output folder gets NAME_mask.png (0 and 255, of
exactly the picture's size) and NAME_overlay.png (what the network saw, with the mask on it). A model of volumes takes
NIfTI files and TIFF stacks: NAME_mask.nii.gz lies on the scan in a viewer, for it has its affine and header; the
overlay is three orthogonal slices. Masks of several classes have the values of the masks that the model was trained on,
and open in colour, those of scans in ITK-SNAP with labels.txt. predictions.csv gets a row per picture as soon as its
files are there, objects.csv a row per object, and index.html shows them; what was predicted into the folder before
stays. With `--shard I/N`, each share of many pictures has its own folder and table. This command joins the tables:

    awk 'FNR > 1 || NR == 1' outputs/predict/shard-*/predictions.csv > all.csv
"""

import argparse
import collections
import hashlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lab import command_line
from lab.data import folders, grey_values, picture_folders, pictures, scans, volumes
from lab.data.classes import Classes, itksnap_labels
from lab.evaluate import label_pictures, objects, page, plots, sample_scores, views
from lab.model import model_file, prediction, timing
from lab.system import backend, output_files, table
from lab.system.errors import first_line
from lab.track import registry

Truth = Path | dict[int, Path] | None  # the true mask of a picture, or one for each class
TABLE, OBJECTS = "predictions.csv", "objects.csv"
LABELS = "labels.txt"  # for ITK-SNAP
COLUMNS = (
    *("picture", "width", "height", "depth", "foreground", "volume_ml", "objects", "diameter", "confidence", "scale"),
    *("seconds", "dice", "iou", "surface", "hausdorff95", "remark", "file", "made_with"),
)
OF_CLASS = ("foreground", "objects", "diameter", "dice")  # columns that each of several classes has, as KEY/NAME
OF_CLASS_IN_SCANS = (*OF_CLASS[:3], "volume_ml", "dice", "surface", "hausdorff95")

GREY = "A grey picture for a model of colour pictures: its grey stands for all three colours."
SHEARED = "The axes of its affine are not at right angles (a tilted gantry?): volume and distances follow the affine."
WITHOUT_VOLUME = "The file names no {}: volume_ml stays empty, diameter and distances are in its own unit."


# Prediction


def predict_picture(models: list[model_file.Model], path: Path, truth: Truth, args, aside: Path) -> tuple:
    """Predict one picture, write its files into the folder `aside`, return its row of the table, and its objects'."""
    from PIL import Image

    about = models[0].preprocessing
    known, channels = model_file.classes_of(about), about["channels"]
    image = pictures.read_picture(path, None if channels == 3 else 1)
    height, width = sides = image.shape[:2]
    remarks = [GREY] if image.shape[-1] < channels else []
    image = np.broadcast_to(image, (*sides, channels))
    true: Any = None
    if truth:
        true = picture_folders.merged(truth, sides) if isinstance(truth, dict) else pictures.read_labels(truth, known)
    if truth and true.shape != sides:
        said = [folders.describe_sides(one) for one in (true.shape, sides)]
        raise ValueError(f"the mask {truth} is {said[0]} pixels, its picture {said[1]}.")
    prepare = prediction.prepare_pictures(models, image)
    slabs, scale = prediction.picture_probabilities(models, image, prepare, args.scale, args.flips, tell=True)
    labels, figures, probs, chosen = prediction.segment(slabs, sides, args.threshold, args.probabilities)
    voxel, affine = None, None
    if steps := pictures.pixel_sides(path):
        voxel, affine = math.prod(steps), np.array([[0, steps[1], 0], [steps[0], 0, 0], [0, 0, 1]])
    rows = objects.find(labels, chosen, image, known.names, voxel, affine)

    step = -(-max(sides) // 2048)  # an overlay is to look at, not to measure in
    preview = prepare[0](image[::step, ::step])
    remarks += [figures["remark"], grey_values.describe_strangeness(preview, about["seen"])]
    remarks += [pictures.describe_loss(path, image)]
    row = {"picture": path.name, "width": width, "height": height, "scale": scale, **figures}
    row |= prediction.measure_objects(labels, known.names, 1, objects.sizes(rows, known.names))
    row["remark"] = " ".join(filter(None, remarks))
    row |= prediction.compare_labels(true, labels, known.names) if truth else {}
    colours = known.colours if known.num > 1 else None
    shown = plots.overlay(preview, labels[::step, ::step], colours=colours)
    shown = label_pictures.with_legend(objects.draw_numbers(shown, rows, step) if args.numbers else shown, known)
    mask_name, overlay_name, *probability_names = output_names(path, about)
    label_pictures.picture(labels, known).save(aside / mask_name, compress_level=1)
    Image.fromarray(shown).save(aside / overlay_name, compress_level=1)
    for name, channel in zip(probability_names, foreground_channels(probs), strict=False):
        Image.fromarray(channel).save(aside / name, compress_level=1)
    return row, rows


def predict_scan(models: list[model_file.Model], path: Path, truth: Truth, args, aside: Path) -> tuple:
    """Predict one scan, write its files into the folder `aside`, return its row of the table, and its objects'.

    The scan is predicted at the spacing of the training; its mask lies on its own grid. Only a slab is in memory.
    """
    from PIL import Image

    about, known = models[0].preprocessing, model_file.classes_of(models[0].preprocessing)
    scan = scans.open_scan(path)
    scans.look_through(scan)
    true: Any = None
    if truth:
        true = volumes.merged(truth, scan) if isinstance(truth, dict) else scans.read_mask(truth, known)
        volumes.check_same_grid(scan, true)
    grid = volumes.grid_shape(scan, about.get("spacing"))
    image = volumes.resample(scan.voxels, grid)[..., None]
    few = grey_values.few_slices(image)
    prepare = prediction.prepare_pictures(models, few)
    slabs = prediction.probabilities(models, image, prepare, args.flips, tell=True)
    slabs = volumes.onto_own_grid(slabs, scan, grid)
    labels, figures, probs, chosen = prediction.segment(slabs, scan.voxels.shape, args.threshold, args.probabilities)
    voxel, affine = (None, None) if scan.lacks else (scan.voxel, scan.affine)
    rows = objects.find(labels, chosen, scan.voxels, known.names, voxel, affine)

    remarks = [figures["remark"], grey_values.describe_strangeness(prepare[0](few), about["seen"])]
    remarks += [SHEARED] if scan.sheared else []
    remarks += [] if about.get("spacing") else [volumes.describe_spacing(scan.spacing, about.get("spacings_seen"))]
    remarks += [WITHOUT_VOLUME.format(scan.lacks)] if scan.lacks and scan.spacing else []
    sizes = objects.sizes(rows, known.names)
    row = {"picture": path.name, **dict(zip(("depth", "height", "width"), labels.shape, strict=True)), **figures}
    row |= prediction.measure_objects(labels, known.names, scan.voxel or 1, sizes)
    row["remark"] = " ".join(filter(None, remarks))
    if not scan.lacks:
        row["volume_ml"] = np.count_nonzero(labels) * scan.voxel / 1000
        for name, voxels in sizes.items() if known.num > 1 else ():
            row[f"volume_ml/{name}"] = voxels.sum() * scan.voxel / 1000
    if truth:
        row |= prediction.compare_labels(true.voxels, labels, known.names)
        steps = 1.0 if scan.steps is None else scan.steps
        row |= sample_scores.class_distances(true.voxels, labels, known.names, steps)
    colours = known.colours if known.num > 1 else None
    shown = views.montage(scan.voxels[..., None], labels, scan.spacing, prepare[0], colours, scan.affine is not None)
    mask_name, overlay_name, *probability_names = output_names(path, about)
    scans.write(known.to_values(labels) if known.num > 1 else labels.view(bool), scan, aside / mask_name)
    Image.fromarray(label_pictures.with_legend(shown, known)).save(aside / overlay_name, compress_level=1)
    for name, channel in zip(probability_names, foreground_channels(probs), strict=False):
        scans.write(channel, scan, aside / name)
    if known.num > 1:
        (aside / LABELS).write_text(itksnap_labels(known), encoding="utf-8")
    return row, rows


def foreground_channels(probs: np.ndarray | None) -> list[np.ndarray]:
    """The channels of probabilities (*sides, C) to write: of one class the only one, else all but the background's."""
    return [] if probs is None else list(np.moveaxis(probs, -1, 0)[probs.shape[-1] > 1 :])


# Files


def find_inputs(args: argparse.Namespace, about: dict) -> dict[Path, Truth]:
    """The pictures or scans, also those in folders, or this shard's share of them; for each its true mask, or None."""
    ndim = about["ndim"]
    find = scans.find_scans if ndim == 3 else pictures.find_pictures
    paths = [p for path in args.pictures for p in (find(path) if path.is_dir() else [path])]
    stems: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        if ndim == 2 and scans.suffix_of(path).startswith(".nii"):
            raise ValueError(f"{path} is a scan, the model {args.model} is for pictures; train volume_segmentation.py.")
        former = stems.setdefault(folders.stem(path), path)
        if former is not path:
            raise ValueError(f"{former} and {path} would get the same output names; predict them in two runs.")
    paths = list(stems.values())
    if not any(path.exists() for path in paths):
        raise ValueError(f"{paths[0]} does not exist.")
    if args.shard:
        number, count = args.shard
        paths = sorted(paths)[number - 1 :: count]
    masks = find_masks(args.masks, find, model_file.classes_of(about)) if args.masks else {}
    truths = {path: masks.get(folders.stem(path)) for path in paths}
    without = [pictures.readable(path.name) for path, truth in truths.items() if args.masks and not truth]
    if without:
        lacking = f"no mask in {args.masks} ({', '.join(without[:3]) + ', ...' * (len(without) > 3)})"
        print(f"WARNING: {len(without)} of {len(paths)} get no score: {lacking}.", file=sys.stderr)
    return truths


def find_masks(folder: Path, find: Callable[[Path], list[Path]], known: Classes) -> dict[str, Truth]:
    """The true masks in a folder, or in its folders for each class, by the stems of their pictures."""
    of_class, masks, problems = folders.masks_by_stem(folder, find)
    folders.refuse(problems, "mask")
    if not of_class:
        return masks
    if set(of_class) != set(known.names):
        raise ValueError(
            f"the folders in {folder} are named {', '.join(of_class)}; the model knows {', '.join(known.names)}."
        )
    label_of = [known.names.index(name) + 1 for name in of_class]
    return {stem: {label_of[k - 1]: path for k, path in files.items()} for stem, files in masks.items()}


def describe_making(args: argparse.Namespace, paths: list[Path]) -> str:
    """The models and flags that a prediction depends on, for the table and for --continue."""
    digests = [hashlib.sha256(path.read_bytes()).hexdigest()[:8] for path in paths]
    models = [f"{name}@{digest}" for name, digest in zip((args.model, *args.models), digests, strict=True)]
    switches = [name for name in ("flips", "probabilities", "numbers") if getattr(args, name)]
    flags = [f"threshold {args.threshold:g}", *switches, *([f"scale {args.scale:g}"] if args.scale else [])]
    return ", ".join([*models, *flags, *[f"masks {args.masks}"] * (args.masks is not None)])


def output_names(path: Path, about: dict) -> list[str]:
    """All files that a picture or scan may get: mask, overlay and probability; of several classes one for each."""
    known, name = model_file.classes_of(about), folders.stem(path)
    suffix = scans.suffix_of(path) if about["ndim"] == 3 else ".png"
    ends = [f"_{of_class}" for of_class in known.names] if known.num > 1 else [""]
    return [f"{name}_mask{suffix}", f"{name}_overlay.png", *(f"{name}_probability{end}{suffix}" for end in ends)]


def table_columns(path: Path, about: dict) -> tuple[str, ...]:
    """The columns of the table; of several classes, some columns come for each class too.

    Raises ValueError if `path` is a table of other classes: its rows would be deleted, but not their files.
    """
    known, keys = model_file.classes_of(about), OF_CLASS_IN_SCANS if about["ndim"] == 3 else OF_CLASS
    columns = COLUMNS + tuple(f"{key}/{name}" for key in keys for name in known.names if known.num > 1)
    former = table.header(path)
    if former not in ((), columns) and any("/" in column for column in former + columns):
        raise ValueError(f"{path} is a table of other classes; name another folder with --out-dir.")
    return columns


def begin_tables(
    folder: Path, columns: tuple, truths: dict[Path, Truth], about: dict, made_with: str, go_on: bool
) -> set[str]:
    """Delete the rows of the pictures to predict, with their files; return the names of the finished pictures.

    If the predictions `go_on`, a picture is finished if its row was made from the same picture and true mask, unchanged
    since, by the same models and flags, and its objects have their rows.
    """
    files = {path.name: output_names(path, about) for path in truths}
    stems = {folders.stem(path) for path in truths}
    for row in table.read(folder / TABLE, columns):
        if folders.stem(Path(row["picture"])) in stems:  # a.bmp gets the files of a former a.png: its row must go
            files.setdefault(row["picture"], [])
    listed = collections.Counter(row["picture"] for row in table.read(folder / OBJECTS, objects.COLUMNS))

    def is_finished(row):
        path = Path(row["file"])
        if not go_on or path not in truths:
            return False
        truth = truths[path]
        mask = folder / files[path.name][0]
        sources = [path, *(truth.values() if isinstance(truth, dict) else [truth] if truth else [])]
        same = row["made_with"] == made_with and int(row["objects"]) == listed[path.name]
        there = all(file.exists() for file in (mask, *sources))
        return same and there and mask.stat().st_mtime >= max(file.stat().st_mtime for file in sources)

    finished = table.begin(folder / TABLE, columns, files, is_finished)
    table.begin(folder / OBJECTS, objects.COLUMNS, dict.fromkeys(files, []), lambda row: row["picture"] in finished)
    return finished


# The command


def parse_args(argv=None) -> argparse.Namespace:
    """Read and check the command line; a bad one ends in one sentence and exit code 2."""
    parser = command_line.make_parser(__doc__, "%(prog)s MODEL PICTURE... [options]")
    add = parser.add_argument
    add("model", metavar="MODEL", help="a .keras file, or in MLflow runs:/RUN_ID/model, models:/NAME@ALIAS, ...")
    add("pictures", type=Path, nargs="+", metavar="PICTURE", help="picture files, or folders of them")
    add("--out-dir", type=Path, default=Path("outputs/predict"), metavar="DIR", help="where all files go")
    threshold = "least probability of an object's pixel, 0 to 1; for models of one class"
    add("--threshold", type=float, default=0.5, metavar="T", help=threshold)
    masks = "true masks of the same names, or a folder of them for each class; for Dice and IoU"
    add("--masks", type=Path, metavar="DIR", help=masks)
    probabilities = "write NAME_probability.png too, for several classes one for each; 16 bits: 65535 is 1"
    add("--probabilities", action="store_true", help=probabilities)
    add("--models", nargs="+", default=[], metavar="MODEL", help="more models: the mean is taken")
    add("--numbers", action="store_true", help="write the objects' numbers into the overlays of pictures")
    scale = "show pictures S times as large; default: 1, or what a model of --recipe photographs is surest of"
    add("--scale", type=float, metavar="S", help=scale)
    flips = "average over mirrored pictures: 4 times as long, scans 8; a little better"
    add("--flips", action="store_true", help=flips)
    add("--shard", type=read_shard, metavar="I/N", help="every N-th picture only, into a folder of its own")
    add("--continue", action="store_true", dest="go_on", help="skip pictures that are finished already")
    return command_line.parse(parser, check_args, argv)


def read_shard(text: str) -> tuple[int, int]:
    """ "3/16" -> (3, 16)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"two numbers I/N were expected, I from 1 to N, such as 3/16; got {text}")
    return int(number), int(count)


def check_args(args: argparse.Namespace) -> None:
    """Raise ValueError for flags that cannot work."""
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold must be in [0, 1], such as 0.5; got {args.threshold}.")
    if args.scale is not None and not 1 / 16 <= args.scale <= 16:
        raise ValueError(f"--scale must be 1/16 to 16, such as 2 for objects half as large; got {args.scale:g}.")


def check_for_model(args: argparse.Namespace, about: dict) -> None:
    """Raise ValueError for flags that do not suit the model's classes and axes."""
    if args.scale is not None and about["ndim"] == 3:
        raise ValueError("--scale is for pictures; scans are brought to the spacing that the model was trained on.")
    if args.threshold != 0.5 and model_file.classes_of(about).num > 1:
        raise ValueError("--threshold is for models of one class; of several, a pixel gets the most probable one.")
    if args.numbers and about["ndim"] == 3:
        raise ValueError("--numbers is for pictures; the objects of scans are found by their places in objects.csv.")


@command_line.script
def main(argv=None) -> int:
    """Predict every picture, write its files and its row; return the exit code."""
    args = parse_args(argv)
    with registry.files([args.model, *args.models]) as paths:
        about, *_ = [model_file.read_preprocessing(path) for path in paths]  # without Keras: errors come at once
        check_for_model(args, about)
        truths = find_inputs(args, about)
        if not truths:
            print("Nothing to do in shard {} of {}: there are fewer pictures than shards.".format(*args.shard))
            return 0
        out_dir = args.out_dir / "shard-{}-of-{}".format(*args.shard) if args.shard else args.out_dir
        with output_files.output_folder(out_dir, reads=(*truths, args.masks)) as folder:
            columns = table_columns(folder / TABLE, about)
            backend.import_keras()
            models = prediction.load_models(paths)
            made_with = describe_making(args, paths)
            finished = begin_tables(folder, columns, truths, about, made_with, args.go_on)
            failures = predict_all(models, truths, finished, args, folder, columns, made_with)
    skipped = f"; {len(finished)} of {len(truths)} finished before" if finished else ""
    failed = f"; {failures} of {len(truths)} failed" if failures else ""
    if failures < len(truths):
        print(f"Files: {out_dir}{skipped}{failed}")
    return 0 if not failures else 2 if failures == len(truths) else 1


def predict_all(models, truths: dict, finished: set[str], args, folder: Path, columns: tuple, made_with: str) -> int:
    """Predict all pictures that are not finished, and tell of each; return how many failed."""
    about, failures, seconds = models[0].preprocessing, 0, []
    gallery = page.Gallery(folder / TABLE, columns, lambda name: output_names(Path(name), about)[1])
    left = sum(path.name not in finished for path in truths)
    for number, (path, truth) in enumerate(truths.items(), 1):
        if path.name in finished:
            continue
        left -= 1
        try:
            row = predict_one(models, path, truth, args, folder, columns, made_with)
        except Exception as error:  # of any kind: the other pictures do not need this one
            failures += 1
            print(f"predict.py: error: {explain(error, path)}", file=sys.stderr)
            continue
        except BaseException as stop:
            stop.add_note("Finished pictures are complete; --continue goes on with the others.")
            raise
        score = f", Dice {row['dice']:.4f}" if "dice" in row else ""
        scaled = f", at scale {row['scale']:g}" if row.get("scale", 1) != 1 else ""
        print(
            f"[{number}/{len(truths)}] {pictures.readable(path.name)}: {row['foreground']:.1%} foreground, "
            f"{folders.count(row['objects'], 'object')}{scaled}{score}, {row['seconds']:.1f} s",
            flush=True,
        )
        if row["remark"]:
            print(f"WARNING: {pictures.readable(path.name)}: {row['remark']}", file=sys.stderr)
        seconds.append(row["seconds"])
        if rest := timing.describe_rest(seconds, left):
            print(rest, flush=True)
        gallery.update()
    gallery.write()
    return failures


def predict_one(models, path: Path, truth: Truth, args, folder: Path, columns: tuple, made_with: str) -> dict:
    """Predict one picture: its files move into `folder` together, then its rows are added to the tables."""
    started = time.perf_counter()
    with output_files.written_aside(folder) as aside:
        predict = predict_scan if models[0].preprocessing["ndim"] == 3 else predict_picture
        row, found = predict(models, path, truth, args, aside)
    row |= {"seconds": time.perf_counter() - started, "file": str(path), "made_with": made_with}
    table.append(folder / OBJECTS, objects.COLUMNS, [{"picture": path.name, **one} for one in found])
    table.append(folder / TABLE, columns, [row])
    return row


def explain(error: Exception, path: Path) -> str:
    """One line that names the picture."""
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {first_line(error)}"
    text, name = pictures.readable(text.strip())[:400], pictures.readable(path.name)
    return text if name in text else f"{path.parent / name}: {text}"


if __name__ == "__main__":
    sys.exit(main())
