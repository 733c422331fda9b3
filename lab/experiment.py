"""One training from beginning to end, for images and volumes, new or resumed, on one host or several.

    scores = experiment.run("2D_UNet_Segmentation", args, RECIPES, make_source, build, evaluate)

The scripts pass what differs, as values and plain functions: the data, the network, the evaluation.
"""

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lab import command_line
from lab.data import grey_values
from lab.data.source import Source
from lab.evaluate import page, plots, scoring
from lab.evaluate.evaluation import Evaluation
from lab.model import checkpoints, model_file, timing, training
from lab.system import backend, output_files, processes
from lab.track import tracking

FILES = (  # all that a training may leave in its folder
    "model.keras", "history.json", "scores.json", "per_image.csv", "per_volume.csv", "curves.png", "predictions.png",
    "split.json", "dataset.png", "confusion.csv", "confusion.png", "index.html",
)  # fmt: skip


def run(
    experiment: str,
    args: argparse.Namespace,
    recipes: dict[str, dict],
    make_source: Callable[[], Source],
    build: Callable[[argparse.Namespace, Source], Any],
    evaluate: Callable[[Any, Source, dict, dict], Evaluation],
    fold: int | None = None,
) -> dict[str, float]:
    """Train one network, score it, write its files, track the run, print the results; return the test scores.

    Args:
        experiment: the name in MLflow.
        args: the command line (see `lab/command_line.py`).
        recipes: the table that `args.recipe` is a row of.
        make_source: reads or draws the data.
        build: command line, source -> an uncompiled network for images of any size.
        evaluate: network, source, history, the flags and their values -> the evaluation on the test set.
        fold: number of the fold, 1 to `args.folds`; its files go to a folder of its own.
    """
    process = processes.connect(args.distributed)
    if process > 0:
        return follow(args, make_source, build)
    fold_words = f", fold {fold} of {args.folds}" if fold else ""
    folder = args.out_dir / f"fold-{fold}" if fold else args.out_dir
    with output_files.output_folder(folder, reads=(args.images, args.masks)) as out:
        if args.check:
            return check(args, make_source, out)
        tracking.open_store(experiment, out)  # before Keras is imported: a bad store is reported in seconds
        source, model, precision = prepare(args, make_source, build)
        epochs = choose_epochs(model, source, args, folder_of_then(args, folder, fold))
        rate = args.learning_rate or source.learning_rate
        chosen = {"epochs": epochs, "precision": precision, "learning_rate": rate, "data": source.name}
        chosen |= source.settings
        settings = command_line.training_settings(args, **chosen)
        checkpoint = checkpoints.Checkpoint(out, settings)
        finished: Any = checkpoint.begin(args.resume, args.overwrite, out / "scores.json")
        if processes.from_first_process(b"finished" if finished else b""):
            processes.leave()
            return finished["test"]

        network_name = f"{'3D ' if len(source.sides) == 3 else ''}U-Net"
        print(f"{network_name} with {model.count_params():,} parameters, {precision}, on {backend.device()}")
        show_data(source, out)
        with tracking.tracked_run(
            experiment,
            run_name=command_line.run_name(source.name, args, recipes, epochs=epochs) + fold_words,
            params={**settings, "out_dir": out, "parameters": model.count_params()},
            tags=backend.provenance(),
            description=f"{network_name} on {source.name} ({source.origin}), recipe `{args.recipe}`, "
            f"seed {args.seed}{fold_words}.",
            resume_run_id=checkpoint.notes.get("run_id"),
            folder=out,
        ) as tracked:
            checkpoint.notes["run_id"] = tracked.run_id
            log_data(tracked, source)
            started = time.perf_counter()
            history = train(model, source, args, checkpoint, tracked.metrics, epochs)
            about = {"training_seconds": time.perf_counter() - started, "settings": settings}
            about |= {
                "parameters": model.count_params(),
                "provenance": {**backend.provenance(), "precision": precision},
            }
            network = training.detach(model)
            scored = functools.partial(evaluate, network, source, history, vars(args))
            evaluation, written, failures = write(out, network, source, history, about, scored)
            log_results(tracked, written, evaluation, about, args.register)
        checkpoint.delete()
    if evaluation:
        print(f"\n{evaluation.summary}")
    run_line = f"MLflow run: {tracked.run_id}, to see it: {tracking.how_to_view()}"
    print(f"\nTrained in {about['training_seconds']:.0f} s. Files: {written}. {run_line}")
    judge(history, evaluation, failures)
    return evaluation.scores


def check(args: argparse.Namespace, make_source: Callable, out: Path) -> dict:
    """Print and draw what a training would see, and train nothing."""
    if (out / "scores.json").exists():
        raise ValueError(f"{out} holds the results of a training: name another --out-dir for --check.")
    backend.start(args.precision, args.deterministic, args.seed)  # the precision decides how large a patch fits
    failures = show_data(make_source(), out)
    if failures:
        raise command_line.Unfinished(" ".join(failures))
    print(f"Nothing was trained. Files: {out}.")
    return {}


def show_data(source: Source, out: Path) -> list[str]:
    """Print what the network will see, and write the files that show it; return a sentence for each file that failed.

    Where the folder holds results of a former training, nothing is written: new results replace them later, as a set.
    """
    print(*source.remarks, source.describe(), sep="\n", flush=True)
    if not source.files or (out / "scores.json").exists():
        return []
    with output_files.written_aside(out) as aside:
        return output_files.write_pieces(aside, source.files)


def judge(history: dict, evaluation: Evaluation | None, failures: list[str]) -> None:
    """Warn if the network is of no use; raise Unfinished if files are missing or the loss is no finite number."""
    broken = not all(math.isfinite(loss) for loss in history["loss"])
    useless = evaluation.failure if evaluation else None
    if useless and not broken:
        print(f"\nWARNING: {useless}", file=sys.stderr)
    behind = evaluation and scoring.describe_behind(evaluation.scores, evaluation.baselines)
    if behind:
        print(f"WARNING: {behind}", file=sys.stderr)
    if failures or broken:
        raise command_line.Unfinished(" ".join([useless, *failures] if broken and useless else failures))


def prepare(args: argparse.Namespace, make_source: Callable, build: Callable) -> tuple[Source, Any, str]:
    """What every process of a training needs: the data, the network, the precision."""
    precision = backend.start(args.precision, args.deterministic, args.seed)
    source = make_source()
    precision = backend.precision_for(precision, source.sides)
    model = build(args, source)
    processes.check_shares(source.num_training, args.batch_size, "training images")
    processes.check_shares(len(source.validation[0]), processes.num_devices(), "validation images")
    return source, model, precision


def follow(args: argparse.Namespace, make_source: Callable, build: Callable) -> dict:
    """Take part in the training of process 0: do the same steps on other rows, and write nothing."""
    source, model, _ = prepare(args, make_source, build)
    epochs = choose_epochs(model, source, args)
    if not processes.from_first_process(b""):
        train(model, source, args, epochs=epochs)
    processes.leave()
    return {}


def folder_of_then(args: argparse.Namespace, folder: Path, fold: int | None) -> Path | None:
    """The folder of a former training whose number of epochs is taken: the resumed one, or the first fold."""
    if fold and fold > 1:  # folds are compared: all are trained for the same number of epochs
        return args.out_dir / "fold-1"
    return folder if args.resume else None


def choose_epochs(model, source: Source, args: argparse.Namespace, then: Path | None = None) -> int:
    """The number of epochs: `--epochs`, that of the training in the folder `then`, or what fits into `--minutes`.

    Process 0 decides, because all processes must take the same number of steps.
    """
    if args.minutes is None:
        return args.epochs
    former = checkpoints.settings_of_then(then).get("epochs", "") if then else ""
    if former := processes.from_first_process(former.encode()):
        return int(former)
    steps = compile_model(model, source, args, args.epochs)
    pace = training.measure(model, source.batches, source.validation)
    pace = timing.Pace(*json.loads(processes.from_first_process(json.dumps(pace).encode())))
    epochs = timing.fitting_epochs(args.minutes, steps, pace)
    print(f"--minutes {args.minutes:g} has room for {timing.count(epochs, 'epoch')}.", flush=True)
    return epochs


def compile_model(model, source: Source, args: argparse.Namespace, epochs: int) -> int:
    """Give the model optimizer, loss and metrics; return the steps of an epoch."""
    steps = math.ceil(source.num_training / args.batch_size)
    rate = args.learning_rate or source.learning_rate
    model.compile(
        optimizer=training.choose_optimizer(args.optimizer, rate, args.schedule, epochs * steps),
        loss=training.choose_loss(args.loss, args.smooth, class_weights(source) if args.class_weights else None),
        metrics=training.make_metrics(source.classes.names),
    )
    return steps


def train(
    model, source: Source, args: argparse.Namespace, checkpoint=None, on_epoch_end=None, epochs: int | None = None
) -> dict[str, list]:
    """Compile the model and train it for `epochs`, by default `--epochs`; it keeps the weights of the last epoch.
    Return the history (see `training.fit`)."""
    epochs = epochs or args.epochs
    steps = compile_model(model, source, args, epochs)
    return training.fit(
        model,
        source.batches,
        epochs=epochs,
        steps=steps,
        validation=source.validation,
        checkpoint=checkpoint,
        on_epoch_end=on_epoch_end,
    )


def class_weights(source: Source) -> list[float]:
    """A weight for background and each class: 1 / share of the pixels, so that their mean over all pixels is 1."""
    shares = training.class_shares(masks for _, masks in source.batches(0))
    present = np.maximum(shares, 1e-4)
    return (1 / present / np.sum(shares / present)).tolist()


def write(out: Path, network, source: Source, history: dict, about: dict, evaluate: Callable):
    """Write the files of a finished training, as one set: the model first, because it took the time.

    If one file cannot be written, the others still are.

    Returns:
        The evaluation, or None if it failed; the folder of the files; a sentence for each failure.
    """
    with output_files.written_aside(out, FILES) as aside:
        failures = output_files.write_pieces(aside, {"model.keras": functools.partial(save_model, network, source)})
        evaluation = output_files.attempt("the scores", evaluate, failures)
        if evaluation:
            about = {
                **about,
                "test": evaluation.scores,
                "baselines": evaluation.baselines,
                "failure": evaluation.failure,
                **({"distances": evaluation.unit} if evaluation.unit else {}),
            }
        last = {name: values[-1] for name, values in history.items()}
        pieces = {
            **source.files,
            **(evaluation.files if evaluation else {}),
            "history.json": lambda path: output_files.write_json(path, history),
            "curves.png": lambda path: plots.plot_curves(history, path, source.classes),
            "scores.json": lambda path: output_files.write_json(path, {"last_epoch": last, **about}),
            "index.html": lambda path: page.write_training(path, f"U-Net on {source.name}"),  # of the files above
        }
        failures += output_files.write_pieces(aside, pieces)
    return evaluation, aside if aside.exists() else out, failures


def save_model(network, source: Source, path: Path) -> None:
    """Write the model file, with the grey values that training saw and with the classes."""
    seen = grey_values.describe_training(source.typical_images(), source.preprocessing)
    model_file.save_model(network, path, {**seen, **source.classes.stored()})


def log_data(tracked: tracking.Run, source: Source) -> None:
    """Record the three sets of data: their shapes, a checksum and their origin."""
    first = (
        source.test
        if isinstance(source.test, tuple)
        else (source.test[0].image[None, :], source.test[0].labels[None, ..., None])
    )
    sets = {
        "training": (next(source.batches(0)), source.num_training),
        "validation": (source.validation, len(source.validation[0])),
        "test": (first, source.num_test),
    }
    for name, ((images, masks), num) in sets.items():
        about = {"name": f"{source.name}, {name}", "context": name, "source": source.origin}
        tracked.dataset(images, masks, num_samples=num, **about)


def log_results(tracked: tracking.Run, folder: Path, evaluation: Evaluation | None, about: dict, register: str | None):
    """Record files, scores and model; with `register`, the model as `models:/NAME` too."""
    for file in sorted(folder.iterdir()):
        if file.name in FILES and file.suffix != ".keras":
            tracked.artifact(file)
    scores = {f"test_{name}": value for name, value in evaluation.scores.items()} if evaluation else {}
    tracked.metrics({**scores, "training_seconds": about["training_seconds"]})
    tracked.tags({"collapsed": "yes" if evaluation and evaluation.failure else "no"})
    model = folder / "model.keras"
    version = tracked.model(model, register) if model.exists() else None
    if version:
        print(f"Registered in MLflow as models:/{register}/{version}.")


def summarize_folds(scores: list[dict], folder: Path) -> dict[str, float]:
    """Mean of the test scores over the folds; folds, mean and standard deviation go to folds.json, and are shown."""
    mean = {name: float(np.mean([fold[name] for fold in scores])) for name in scores[0]}
    spread = {name: float(np.std([fold[name] for fold in scores], ddof=1)) for name in scores[0]}
    with output_files.written_aside(folder) as aside:
        output_files.write_json(aside / "folds.json", {"folds": scores, "mean": mean, "standard_deviation": spread})
        folds = {f"fold {i}": fold for i, fold in enumerate(scores, 1)}
        rows = {**folds, "mean": mean, "standard deviation": spread}
        links = [(page.link(f"{name.replace(' ', '-')}/{page.NAME}"), name) for name in folds]
        page.write(aside / page.NAME, f"{len(scores)} folds", tables=[page.scores_of(rows)], beside=links)
    print("\n" + scoring.format_table(rows))
    return mean
