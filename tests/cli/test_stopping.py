"""Signals, readers that go away, and places of results: what the command line does as a process of its own."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from icl_lab import cli

COMMAND = [sys.executable, "-c", "import sys; from icl_lab.cli import main; sys.exit(main())"]


@contextlib.contextmanager
def listening():
    """Scope in which this process does not ignore signals, which a child would inherit."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in (number for number, handler in before.items() if handler == signal.SIG_IGN):
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def started(*arguments, **options):
    """The command line in a session of its own, so that its process group is not ours."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    # In the background of a shell this process ignores interrupts, and so would its children.
    with listening():
        return subprocess.Popen([*COMMAND, *arguments], text=True, start_new_session=True, **options)


def at_work(group):
    """The processes of a group that have not ended."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                state, _, of = file.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of) == group and state not in "ZX":
            found.append(int(entry))
    return found


def stop(process, number, *, whole_group, limit=8.0):
    """Send a signal; its output. What is left of its group after `limit` seconds is ended and a failure."""
    (os.killpg if whole_group else os.kill)(process.pid, number)
    try:
        out, err = process.communicate(timeout=limit)
        deadline = time.monotonic() + limit
        while at_work(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert at_work(process.pid) == []
    finally:
        for left in at_work(process.pid):
            os.kill(left, signal.SIGKILL)
    return out, err


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_verification_keeps_its_results_and_leaves_no_workers(tmp_path, number, whole_group):
    file = tmp_path / "results.json"
    said = tmp_path / "stderr"
    with said.open("w") as stderr:
        process = started("verify", "zhang2023.setup", "lab.*", "--jobs", "2", "--json", str(file), stderr=stderr)
    deadline = time.monotonic() + 180
    while not re.search(r"claims \d+ of ", said.read_text()) and time.monotonic() < deadline:
        time.sleep(1.0)
    out, _ = stop(process, number, whole_group=whole_group)
    err = said.read_text()
    assert process.returncode == 128 + number
    kept = json.loads(file.read_text())
    assert kept
    assert f"the results of {len(kept)} of " in err
    assert "claims passed" in out


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed():
    process = started("verify", "lab.*", "--jobs", "2")
    time.sleep(20.0)
    assert len(at_work(process.pid)) > 1
    stop(process, signal.SIGKILL, whole_group=False)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 4.0, 15.0])
@pytest.mark.parametrize("settings", [["task=sphere"], ["trainer=adam", "objective=streamed", "trainer.steps=100000"]])
def test_a_stopped_run_ends_without_a_crash(tmp_path, settings, seconds):
    process = started("run", *settings, f"run_root={tmp_path / 'runs'}")
    time.sleep(seconds)
    _, err = stop(process, signal.SIGINT, whole_group=True)
    # Before the handlers are there, Python itself ends by the signal.
    assert process.returncode in ((130,) if seconds > 1 else (130, -signal.SIGINT))
    assert "Fatal" not in err
    if seconds > 1:
        assert "interrupted; " in err
    assert not list(tmp_path.rglob(".partial-*"))


@pytest.mark.parametrize(
    "arguments",
    [["claims"], ["claims", "--json"], ["run", "--help"], ["--help"], pytest.param(["doctor"], marks=pytest.mark.slow)],
)
def test_a_reader_that_goes_away_is_no_error(arguments):
    read, write = os.pipe()
    os.close(read)
    process = started(*arguments, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, [line for line in err.splitlines() if not line.startswith("icl-lab: ")]) == (0, [])
    assert "Pipe" not in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device to write to")
def test_a_full_disk_is_told(tmp_path):
    with open("/dev/full", "w") as full:
        process = started("claims", stdout=full)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "standard output could not be written: No space left on device." in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device to write to")
def test_results_are_on_the_screen_if_their_file_cannot_be_written(capsys):
    assert cli.main(["verify", "zhang2023.setup", "--json", "/dev/full"]) == 1
    output = capsys.readouterr()
    assert "1 of 1 claims passed" in output.out
    assert "`--json` /dev/full could not be written: No space left on device." in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "zhang2023.setup", "--json", ""], "`--json` must name a file; got ''"),
        (["verify", "zhang2023.setup", "--json", "{folder}"], "`--json` must name a file; got the folder"),
        (["verify", "zhang2023.setup", "--json", "{file}/x.json"], "the folder of `--json` must exist"),
        (["verify", "*fig1"], "run by their full id: zhang2023.fig1."),
        (["verify", "zhang2023.setup", "--set", "seed=18446744073709551615"], "from 0 to 2^63 - 1"),
        (["identify", "{folder}", "--json", "{folder}"], "`--json` must name a file"),
        (["table", "{folder}", "-o", "{folder}/dir.csv"], "`-o` must name a file; got the folder"),
        (["report", "{file}", "-o", "/proc/none"], "`-o` must be a place that can be written"),
        (["report", "{file}", "-o", "{file}"], "`-o` must be a folder"),
    ],
)
def test_places_and_values_are_tried_before_the_work(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("{}")
    (tmp_path / "dir.csv").mkdir()
    arguments = [argument.format(folder=tmp_path, file=tmp_path / "file") for argument in arguments]
    assert cli.main(arguments) == cli.MISUSE
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=-1", "`seed` must be an integer from 0 to 2^63 - 1"),
        ("analysis.seed=18446744073709551615", "`analysis.seed` must be an integer from 0 to 2^63 - 1"),
        ("run_root={file}/runs", "cannot be used: Not a directory."),
    ],
)
def test_a_run_that_the_user_can_mend_is_misuse(setting, message, tmp_path):
    (tmp_path / "file").touch()
    # Hydra takes over the logging of a process, so these have one of their own.
    process = started("run", setting.format(file=tmp_path / "file"), cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == cli.MISUSE
    assert message in err
