"""What every script's command line shares: errors, signals, the output folder, recipes and training flags.

    @command_line.script
    def main(argv=None):
        args = command_line.parse(parser, check, argv)
        with output_files.output_folder(args.out_dir, reads=(args.images,)):
            ...

A failure of a script is one sentence on the error stream and an exit code (see EXIT_CODES), never a traceback: 2 where
a flag, a file or a store cannot be used. LAB_TRACEBACK=1 shows the traceback too.
"""

import argparse
import contextlib
import functools
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.data.classes import check_names
from lab.system import backend, processes
from lab.system.errors import first_line
from lab.system.processes import LostProcess
from lab.system.signals import Stopped, signals_raise
from lab.track.store import TrackingError

NOT_OF_THE_TRAINING = (  # flags that change no number of a training, or are only paths
    "out_dir", "resume", "overwrite", "run_name", "register", "images", "masks", "distributed", "memory", "minutes",
    "check",
)  # fmt: skip

EXIT_CODES = """exit codes:
    0 all is done; 1 something that was begun could not be finished; 2 nothing was done
    130, 143, 129 stopped by Ctrl-C, SIGTERM, SIGHUP"""


class Unfinished(RuntimeError):
    """Something that was begun could not be finished; the message says what is missing. Exit code 1."""


# Errors and signals


def script(main: Callable) -> Callable:
    """Decorate a script's `main(argv=None)`: any failure becomes one sentence and a SystemExit with a code."""

    @functools.wraps(main)
    def wrapper(argv=None):
        name = Path(getattr(sys.modules[main.__module__], "__file__", sys.argv[0])).name
        try:
            with signals_raise(), _patient_output():
                return main(argv)
        except BaseException as error:
            failure = error
        if os.environ.get("LAB_TRACEBACK"):
            traceback.print_exception(failure)
        sentence, code = describe(failure)
        if sentence:
            print(f"{name}: {sentence}", file=sys.stderr, flush=True)
        if processes.several_processes():  # a process that is stopped must not wait for others: they may hang
            sys.stdout.flush()
            os._exit(code)
        raise SystemExit(code) from None

    return wrapper


def describe(error: BaseException) -> tuple[str | None, int]:
    """The sentence and the exit code of a failure; its notes (`add_note`) follow the sentence."""
    notes = " ".join(getattr(error, "__notes__", ()))
    if isinstance(error, KeyboardInterrupt):
        return f"stopped by Ctrl-C. {notes}".strip(), 130
    if isinstance(error, Stopped):
        return f"stopped by {signal.Signals(error.code - 128).name}. {notes}".strip(), error.code
    if isinstance(error, SystemExit):
        return None, error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    ours = isinstance(error, ValueError | TrackingError | Unfinished | LostProcess)
    text = str(error) if ours else first_line(error)  # a library may add pages of context
    if isinstance(error, Unfinished | LostProcess):
        return f"{text} {notes}".strip(), 1
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return f"error: not enough memory ({text[:200]}). Smaller images, patches or batches need less. {notes}", 1
    if isinstance(error, ValueError | OSError | TrackingError):
        return f"error: {text} {notes}".strip(), 2
    return f"unexpected error: {type(error).__name__}: {text[:300]} LAB_TRACEBACK=1 shows where. {notes}".strip(), 1


@contextlib.contextmanager
def _patient_output() -> Iterator[None]:
    """Let the work go on if its console can no longer be written to (`| head -1`, a log on a full disk)."""
    stream = sys.stdout

    class Patient:
        def write(self, text):
            with contextlib.suppress(OSError, ValueError):
                stream.write(text)
            return len(text)

        def flush(self):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()

        def __getattr__(self, name):
            return getattr(stream, name)

    sys.stdout = Patient()
    try:
        yield
    finally:
        sys.stdout = stream
        try:
            stream.flush()
        except (OSError, ValueError):  # else Python reports it at its end
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


# Flags


def parse(
    parser: argparse.ArgumentParser,
    check: Callable,
    argv=None,
    recipe_of: Callable[[argparse.Namespace], str] | None = None,
    recipes: dict[str, dict] | None = None,
) -> argparse.Namespace:
    """Parse a command line and check it; a bad one ends in one sentence and exit code 2. Nothing is written to disk.

    With `recipes`, flags that are not given have the values of the row that `recipe_of(args)` names. The result is
    complete and is not changed later.
    """
    if recipe_of:
        recipe = recipe_of(parser.parse_args(argv))
        parser.set_defaults(recipe=recipe, **recipes[recipe])
    args = parser.parse_args(argv)
    try:
        check(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return args


def make_parser(doc: str, usage: str = "%(prog)s [options]") -> argparse.ArgumentParser:
    """A parser whose --help shows every default, between the docstring's first line and its first two commands."""
    commands = [line for line in doc.splitlines() if line.startswith("    python ")][:2]
    return argparse.ArgumentParser(
        description=doc.split("\n")[0],
        usage=usage,
        epilog="\n".join(["examples:", *commands, "", EXIT_CODES]),
        formatter_class=_Help,
    )


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows a flag's default after its help, once, and as it is typed."""

    def _get_help_string(self, action):
        if action.default is False or action.default in (None, [], argparse.SUPPRESS) or "default" in action.help:
            return action.help
        shown = " ".join(map(str, _list(action.default))).replace("%", "%%")
        return f"{action.help} (default: {shown})"


class _OneOrThree(argparse.Action):
    """One number for all axes, or three: depth, height, width."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) not in (1, 3):
            parser.error(f"{option_string} takes one number, or three: depth height width; got {len(values)}.")
        setattr(namespace, self.dest, tuple(values) * (3 // len(values)))


def one_or_three(kind: type) -> dict:
    """Options of a flag that takes one number for all axes, or three."""
    return {"type": kind, "nargs": "+", "action": _OneOrThree}


def recipe_flag(add: Callable, recipes: dict[str, dict], flag: str, **options) -> None:
    """Add a flag whose default stands in the table of recipes; --help shows the default of each recipe."""
    name = flag.lstrip("-").replace("-", "_")
    shown = {recipe: " ".join(map(str, _list(row[name]))) for recipe, row in recipes.items() if row[name] is not None}
    first = next(iter(recipes))
    others = [f"{recipe}: {value}" for recipe, value in shown.items() if recipe != first and value != shown.get(first)]
    default = "; ".join([str(shown.get(first)), *others])
    options["help"] += f" (default: {default})"
    add(flag, default=argparse.SUPPRESS, **options)


def _list(value) -> list:
    return list(value) if isinstance(value, tuple | list) else [value]


def add_training_flags(group, recipes: dict[str, dict], what: str, rate: str = "") -> None:
    """Add the flags of a training, the same in every script that trains.

    `what` is "image" or "sample"; `rate` ends the help of `--learning-rate`.
    """
    add, length = group.add_argument, group.add_mutually_exclusive_group().add_argument
    chosen = functools.partial(recipe_flag, add, recipes)
    recipe_flag(length, recipes, "--epochs", type=int, metavar="N", help=f"passes over the training {what}s")
    minutes = "instead: as many epochs as fit into M minutes, after timing some steps; all folds take the same number"
    length("--minutes", type=float, metavar="M", help=minutes)
    chosen("--batch-size", type=int, metavar="N", help=f"{what}s per step")
    chosen("--optimizer", choices=("muon", "adam"), help="muon needs fewer epochs, adam is the textbook's")
    chosen("--learning-rate", type=float, metavar="R", help=f"peak step size, above 0{rate}")
    chosen("--schedule", choices=("cosine", "constant"), help="course of the learning rate")
    losses = ("dice", "ce", "dice+ce", "pooled-dice")
    chosen("--loss", choices=losses, help="the loss to minimise; pooled-dice is the lab report's")
    weights = "weight the classes in cross-entropy by 1 / their share of the pixels"
    add("--class-weights", action=argparse.BooleanOptionalAction, default=False, help=weights)
    smooth = "constant in numerator and denominator of the Dice losses, above 0 (default: 1, pooled-dice 1e-6)"
    add("--smooth", type=float, metavar="S", help=smooth)
    chosen("--filters", type=int, metavar="N", help="channels of the first block")
    add("--skips", action=argparse.BooleanOptionalAction, default=True, help="the skip connections")
    precisions = ("auto", "float32", "mixed_bfloat16")
    chosen("--precision", choices=precisions, help="auto: bfloat16 where the hardware has it")
    add("--seed", type=int, default=0, metavar="N", help="of the weights and the data, 0 to 2^32 - 1")
    add("--deterministic", action="store_true", help="ask TensorFlow for bit-for-bit repeatable operations")
    add("--distributed", action="store_true", help="share each batch with processes on other hosts; needs JAX")


def own_data_flags(parser, what: str, drawn: str, *, kinds: str, masks: str, augment: str) -> Callable:
    """Add the flags of a user's own data; return the group's `add_argument` for those that only one script has.

    `what` is "pictures" or "scans", `drawn` what is drawn otherwise; the others are parts of the help.
    """
    add = parser.add_argument_group(f"your own {what}, in place of {drawn}").add_argument
    add("--images", type=Path, metavar="DIR", help=f"folder of {what}: {kinds}, of any size")
    add("--masks", type=Path, metavar="DIR", help=f"folder of their masks, of the same names: {masks}")
    text = "print what a training would see, write dataset.png and split.json to --out-dir, and end without training"
    add("--check", action="store_true", help=text)
    names = "names of the classes, in the order of the masks' values (default: the names of the folders in --masks, if "
    names += "it holds one for each class, or those that a label file in it gives, else the values)"
    add("--classes", nargs="+", metavar="NAME", help=names)
    ignored = "value, or #colour, of pixels in masks that are not labelled, often 255"
    add("--ignore", type=_value, metavar="VALUE", help=ignored)
    text = "one range of grey values for the folder, or one for each picture; auto: where objects agree better"
    add("--grey-range", choices=("auto", "folder", "picture"), default="auto", help=text)
    add("--augment", action=argparse.BooleanOptionalAction, default=True, help=augment)
    return add


def _value(text: str) -> int:
    """ "255" -> 255, "#e0e0c0" -> 0xe0e0c0."""
    return int(text[1:], 16) if text.startswith("#") else int(text)


def add_output_flags(add: Callable, folder: str) -> None:
    """Add the flags for the output folder, for stopped runs and for MLflow."""
    add("--out-dir", type=Path, default=Path(folder), metavar="DIR", help="where all files go")
    add("--resume", action="store_true", help="go on with the run that was stopped, from its last finished epoch")
    add("--overwrite", action="store_true", help="delete the checkpoints of a stopped run, and begin again")
    add("--run-name", metavar="NAME", help="of the MLflow run; default: data, recipe, flags that differ from it, seed")
    add("--register", metavar="NAME", help="make the model the newest version of models:/NAME in MLflow")


def check_training_flags(args: argparse.Namespace, counts: tuple[str, ...], drawn: str) -> None:
    """Raise ValueError for flags that cannot work: `counts` count something, `drawn` is drawn without --images."""
    backend.refuse_torch()
    check_limits(args, dict.fromkeys((*counts, "epochs", "batch_size"), (1, 10**9)))
    check_limits(args, {"filters": (1, 512), "seed": (0, 2**32 - 1)})
    if args.minutes is not None and not 0 < args.minutes < float("inf"):
        raise ValueError(f"--minutes must be a finite number above 0, such as 10; got {args.minutes}.")
    if args.learning_rate is not None and not 0 < args.learning_rate < float("inf"):
        raise ValueError(f"--learning-rate must be a finite number above 0, such as 0.002; got {args.learning_rate}.")
    if args.smooth is not None and (args.loss == "ce" or not 0 < args.smooth < float("inf")):
        raise ValueError(f"--smooth is the constant above 0 of a Dice loss; got {args.smooth} with --loss {args.loss}.")
    if args.class_weights and args.loss not in ("ce", "dice+ce"):
        raise ValueError(f"--class-weights weights cross-entropy; give --loss dice+ce or ce, not {args.loss}.")
    if args.classes is not None:
        check_names(args.classes)
    if args.check and (args.images is None or args.distributed):
        raise ValueError("--check is for your own data (--images and --masks), without --distributed.")
    if args.resume and args.overwrite:
        raise ValueError("--resume goes on with a stopped run, --overwrite deletes it: give one of them.")
    if args.register is not None and not re.fullmatch(r"\w[\w. -]*", args.register):
        raise ValueError(f"--register takes a name of letters, digits, spaces and _ . -; got {args.register!r}.")
    if (args.images is None) != (args.masks is None):
        raise ValueError(f"--images and --masks belong together: give both, or neither for {drawn}.")


def check_limits(args: argparse.Namespace, limits: dict[str, tuple[int, int]]) -> None:
    """Raise ValueError for a number outside its limits, least and most."""
    for name, (least, most) in limits.items():
        if not least <= getattr(args, name) <= most:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} to {most}; got {getattr(args, name)}.")


def training_settings(args: argparse.Namespace, **others) -> dict[str, str]:
    """All that a training depends on, by name: its flags without those of the output, and `others` (such as `data`)."""
    settings = {**vars(args), **others}
    return {name: str(value) for name, value in settings.items() if name not in NOT_OF_THE_TRAINING}


def run_name(what: str, args: argparse.Namespace, recipes: dict[str, dict], **others) -> str:
    """A run's name: data, recipe, flags that differ from it, seed; `others` replace arguments of the same names.

    MLflow draws its names from Python's random numbers: a fixed seed would give all runs the same name.
    """
    settings = {**vars(args), **others}
    changed = [name for name, value in recipes[args.recipe].items() if _list(settings[name]) != _list(value)]
    differences = [f"{name.replace('_', '-')} {' '.join(map(str, _list(settings[name])))}" for name in changed]
    return args.run_name or ", ".join(dict.fromkeys([what, args.recipe, *differences, f"seed {args.seed}"]))
