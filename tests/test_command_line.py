"""How scripts end: sentences, exit codes, signals, consoles that close, and the output folder."""

import ast
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import command_line
from lab.command_line import Unfinished, describe
from lab.system.output_files import output_folder
from lab.system.signals import Stopped

ROOT = Path(__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (ValueError("--size must be even; got 3."), "error: --size must be even; got 3.", 2),
        (FileNotFoundError(2, "No such file", "a.png"), "a.png", 2),
        (Unfinished("curves.png could not be written."), "curves.png could not be written.", 1),
        (MemoryError("a lot"), "not enough memory", 1),
        (TypeError("None + 1"), "unexpected error: TypeError: None + 1", 1),
        (KeyboardInterrupt(), "stopped by Ctrl-C", 130),
        (Stopped(143), "stopped by SIGTERM", 143),
    ],
)
def test_every_failure_is_a_sentence_and_a_code(error, words, code):
    sentence, found = describe(error)
    assert words in sentence and found == code and "\n" not in sentence


def test_notes_of_an_error_follow_its_sentence():
    error = KeyboardInterrupt()
    error.add_note("Go on with --resume.")
    assert describe(error)[0] == "stopped by Ctrl-C. Go on with --resume."


def test_a_script_shows_no_traceback(capsys):
    @command_line.script
    def main(argv=None):
        raise TypeError("None + 1")

    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "test_command_line.py: unexpected error: TypeError: None + 1 " \
        "LAB_TRACEBACK=1 shows where.\n"  # fmt: skip


WORK = """
import sys, time
from lab import command_line
from lab.system import output_files

class Drops:  # an exception inside its destructor is dropped by Python
    def __del__(self):
        print("ready", flush=True)
        time.sleep(0.5)

@command_line.script
def main(argv=None):
    if "destructor" in sys.argv:
        Drops()
    elif "foreign" in sys.argv:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except BaseException:
            raise TypeError("a library in the middle of something")
    else:
        print("ready", flush=True)
    try:
        time.sleep(60)
    finally:
        time.sleep(0.5)  # a second signal must not strike the clean-up
        print("cleaned", flush=True)

if __name__ == "__main__":
    main()
"""


def start(*arguments, **options):
    def hear():  # a shell's background job ignores Ctrl-C, and so would its children
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": hear}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", WORK, *arguments], env=environment, **{**streams, **options})


@POSIX
@pytest.mark.parametrize("case", ["plain", "destructor", "foreign"])
@pytest.mark.parametrize(
    ("name", "words", "code"), [("SIGINT", "Ctrl-C", 130), ("SIGTERM", "SIGTERM", 143), ("SIGHUP", "SIGHUP", 129)]
)
def test_a_signal_ends_a_script_with_its_code_and_sentence_wherever_it_strikes(case, name, words, code):
    process = start(case)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    started = time.monotonic()
    process.send_signal(getattr(signal, name))
    time.sleep(0.3)
    process.send_signal(getattr(signal, name))  # an impatient user
    output, errors = process.communicate(timeout=20)
    assert process.returncode == code and time.monotonic() - started < 5
    assert errors == f"-c: stopped by {words}.\n"
    assert output == ("" if case == "foreign" else "cleaned\n")


CHATTER = """
from lab import command_line
from lab.system import output_files

@command_line.script
def main(argv=None):
    for number in range(100_000):
        print(number)
    open("done", "w").close()

main()
"""


@POSIX
def test_work_goes_on_where_nobody_reads_its_console_any_more(tmp_path):
    command = f"{sys.executable} -c '{CHATTER}' 2>errors | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)  # fmt: skip
    assert done.stdout == "0\n" and done.returncode == 0
    assert (tmp_path / "done").exists() and (tmp_path / "errors").read_text() == ""


# The output folder


def test_an_output_folder_is_created_used_and_left_without_rubbish(tmp_path):
    with output_folder(tmp_path / "a" / "b") as out:
        assert out.is_dir()
    assert not (tmp_path / "a").exists()  # nothing was written
    with output_folder(tmp_path / "a" / "b") as out:
        (out / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_folder_that_holds_the_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds the input"), output_folder(tmp_path, (tmp_path,)):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"), output_folder(tmp_path / "file" / "out"):
        pass


def test_a_second_script_in_one_folder_is_refused(tmp_path):
    with output_folder(tmp_path), pytest.raises(ValueError, match="another script"), output_folder(tmp_path):
        pass
    with output_folder(tmp_path):  # once the first has ended it may
        pass


def test_what_a_killed_script_left_is_finished_or_deleted(tmp_path):
    (tmp_path / ".partial-1").mkdir()
    (tmp_path / ".partial-2-checkpoint").touch()
    complete = tmp_path / ".complete-1"
    complete.mkdir()
    (complete / ".names").write_text('["scores.json", "split.json"]')
    (complete / "scores.json").write_text("new")
    (tmp_path / "split.json").write_text("old")
    with output_folder(tmp_path):
        pass
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"scores.json": "new"}


# Flags


CODE = ("lab", "benchmarks", "report")  # folders beside the scripts
RECIPES = {"one": {"size": 64, "loss": "dice"}, "two": {"size": 128, "loss": "dice"}}


def parser():
    made = command_line.make_parser("What it does.\nMore.")
    made.add_argument("--recipe", choices=RECIPES)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--run-name")
    for flag, kind in (("--size", int), ("--loss", str)):
        command_line.recipe_flag(made.add_argument, RECIPES, flag, type=kind, help="what it is")
    return made


def test_help_shows_the_default_of_every_recipe():
    text = parser().format_help()
    assert "(default: 64; two: 128)" in text and "(default: dice)" in text


SCRIPTS = ("unet_segmentation", "volume_segmentation", "conv3d_analysis", "predict")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_each_default_once_as_it_is_typed_and_ends_with_examples(name, capsys):
    script = importlib.import_module(name)
    with pytest.raises(SystemExit):
        script.parse_args(["--help"])
    text = capsys.readouterr().out
    flags, examples = text.split("examples:\n")
    assert not re.search(r"default: (None|\[|\()", flags)
    entries = re.split(r"\n  (?=-|[A-Z])", flags)
    assert [entry for entry in entries if entry.count("default:") > 1] == []
    commands = [line for line in examples.splitlines() if line.startswith(f"    python {name}.py")]
    assert len(commands) == 2 and all(line in script.__doc__ for line in commands)
    assert "exit codes:" in examples and "130" in examples
    if name == "unet_segmentation":
        words = " ".join(flags.split())
        assert "(default: 8 25; shapes: 9 16)" in words and "0 to 2^32 - 1 (default: 0)" in words


@pytest.mark.parametrize(
    ("flags", "size", "name"),
    [
        ("", 64, "circles, one, seed 0"),
        ("--seed 3", 64, "circles, one, seed 3"),
        ("--recipe two", 128, "circles, two, seed 0"),
        ("--recipe two --size 64", 64, "circles, two, size 64, seed 0"),
        ("--size 64", 64, "circles, one, seed 0"),
        ("--run-name mine --size 32", 32, "mine"),
    ],
)
def test_a_recipe_gives_what_was_not_set_and_a_runs_name_tells_what_differs_from_it(flags, size, name):
    checked = []
    args = command_line.parse(
        parser(), checked.append, flags.split(), lambda args: args.recipe or next(iter(RECIPES)), RECIPES
    )
    assert args.size == size and args.loss == "dice" and checked == [args]
    assert command_line.run_name("circles", args, RECIPES) == name


def test_what_a_check_refuses_is_one_sentence_and_exit_code_2(capsys):
    def refuse(args):
        raise ValueError("--size must be even; got 3.")

    with pytest.raises(SystemExit) as stop:
        command_line.parse(parser(), refuse, ["--size", "3"])
    assert stop.value.code == 2 and capsys.readouterr().err.endswith("error: --size must be even; got 3.\n")


def lines_that_write_to_arguments(code: str) -> list[int]:
    """The lines where an attribute of a name that parsed arguments have here, `args` or `settings`, is set."""
    lines = []
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Attribute(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                pass
            case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[ast.Name(id=name), *_]):
                pass
            case ast.Subscript(value=ast.Call(func=ast.Name(id="vars"), args=[ast.Name(id=name)]), ctx=ast.Store()):
                pass
            case _:
                continue
        if name in ("args", "settings"):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("name", ["args", "settings"])
@pytest.mark.parametrize("line", [
    "{}.a = 1", "x, {}.a = 1, 2", "{}.a += 1", "setattr({}, 'a', 1)", "del {}.a", "vars({})['a'] = 1",
])  # fmt: skip
def test_a_line_that_writes_to_arguments_is_found(line, name):
    assert lines_that_write_to_arguments(f"x = {name}.a\n{line.format(name)}\n") == [2]


def test_nobody_writes_to_arguments_after_they_were_parsed():
    files = [*ROOT.glob("*.py"), *(file for folder in CODE for file in (ROOT / folder).rglob("*.py"))]
    assert len(files) > 50
    found = {str(file.relative_to(ROOT)): lines_that_write_to_arguments(file.read_text("utf-8")) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}
