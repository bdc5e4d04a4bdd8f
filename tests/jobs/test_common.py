"""How commands end: by Ctrl-C, and with output that cannot be written."""

import errno
import os
import sys
from contextlib import contextmanager, redirect_stdout

import pytest

from jobs import cli, evaluate, train
from jobs.common import guarded, logical_cpus


@pytest.fixture(params=[1, 100_000], ids=["in a buffer", "beyond it"])
def text(request):
    return "x" * request.param


@contextmanager
def stdout(stream):
    """Replaces stdout."""
    with stream, redirect_stdout(stream):
        yield


def unread():
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return stdout(open(writer, "w"))


def full():
    """A file on a full disk."""
    return stdout(open("/dev/full", "w"))


def interrupted():
    raise KeyboardInterrupt


def test_ctrl_c_is_no_traceback(capsys):
    assert guarded(interrupted) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_has_gone_ends_a_command_in_silence(capsys, text):
    with unread():
        assert guarded(lambda: sys.stdout.write(text)) == 1
    assert capsys.readouterr().err == ""


def test_a_full_disk_below_stdout_is_one_line(capsys, text):
    with full():
        assert guarded(lambda: sys.stdout.write(text)) == 1
    assert capsys.readouterr().err == (
        "error: the output cannot be written (No space left on device): free space on its disk\n"
    )


@pytest.mark.parametrize(("main", "options"), [(train.main, []), (evaluate.main, ["--suite", "scenes"])])
def test_so_is_one_below_the_help(capsys, main, options):
    with full():
        assert main([*options, "--help"]) == 1
    assert capsys.readouterr().err.startswith("error: the output cannot be written")


def test_so_is_one_below_blip3o(capsys):
    with full():
        assert cli.main(["--help"]) == 1
    assert capsys.readouterr().err.startswith("error: the output cannot be written")


def test_a_stdout_that_a_shell_has_closed_loses_nothing_else():
    with redirect_stdout(None):
        assert guarded(lambda: None) == 0


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "gone"), OSError(errno.ENOSPC, "full", "a/file"), BrokenPipeError(errno.EPIPE, "")]
)
def test_what_is_not_of_the_output_stays_an_error(error):
    def fails():
        raise error

    reader, writer = os.pipe()
    with open(reader), stdout(open(writer, "w")), pytest.raises(OSError):
        guarded(fails)


@pytest.mark.parametrize(("cores", "offered"), [(2, 6), (16, 16), (None, 6)])
def test_a_private_ray_offers_the_cores_of_the_machine_and_more_on_a_laptop(cores, offered, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert logical_cpus() == offered
