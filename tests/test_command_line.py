"""How scripts end: sentences, exit codes, signals, consoles that close, and the output folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import command_line
from lab.command_line import Unfinished, describe, output_folder
from lab.signals import Stopped

ROOT = Path(command_line.__file__).parent.parent
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


RECIPES = {"one": {"size": 64, "loss": "dice"}, "two": {"size": 128, "loss": "dice"}}


def parser():
    made = command_line.make_parser("What it does.\nMore.")
    made.add_argument("--recipe", choices=RECIPES, default="one")
    for flag, kind in (("--size", int), ("--loss", str)):
        command_line.recipe_flag(made.add_argument, RECIPES, flag, type=kind, help="what it is")
    return made


def test_help_shows_the_default_of_every_recipe():
    text = parser().format_help()
    assert "(default: 64; two: 128)" in text and "(default: dice)" in text


@pytest.mark.parametrize(
    ("flags", "size", "changed"),
    [("", 64, []), ("--recipe two", 128, []), ("--recipe two --size 64", 64, ["size"]), ("--size 64", 64, [])],
)
def test_a_recipe_fills_in_what_was_not_set(flags, size, changed):
    args = parser().parse_args(flags.split())
    command_line.fill_from_recipe(args, RECIPES)
    assert args.size == size and args.changed == changed


def test_what_would_not_fit_into_memory_is_refused():
    with pytest.raises(ValueError, match="images would take .* GiB"):
        command_line.check_room(2**60, "images")
