"""`make check` runs its tiers until one fails, and always ends with what each took and which tests were slowest."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from sandbox.checks import ROOT, SLOWEST, Ended, Tier, format_summary, main, read_durations

TIERS = (Tier("style"), Tier("test", 9), Tier("seeds", 6))


@pytest.fixture
def make(tmp_path: Path) -> Path:
    """Stands in for Make: a target is a file beside it, run by the shell."""
    program = tmp_path / "make"
    program.write_text(f'#!/bin/sh\ncd {tmp_path} && . "./$2"\n')
    program.chmod(0o755)
    return program


def write_targets(make: Path, **targets: str) -> None:
    for name, text in targets.items():
        make.with_name(name).write_text(text + "\n")


def test_all_tiers_run_in_order_with_one_folder_of_lives(
    make: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_targets(
        make,
        style="echo style",
        test="""echo '["tests/a.py::test_a[1]", 2.5]' >> $GREENTRAIN_DURATIONS; echo kept > $GREENTRAIN_LIVES/a""",
        seeds="cat $GREENTRAIN_LIVES/a; rm $GREENTRAIN_LIVES/a",
    )
    assert main([str(make)], TIERS) == 0
    said = capfd.readouterr().out
    assert said.startswith("style\nkept\n")
    assert "    2.5 s  test   tests/a.py::test_a[1]\n" in said
    assert said.endswith("\nmake check: everything holds\n")


def test_a_tier_that_fails_is_the_last_and_its_exit_code_is_the_checks(
    make: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_targets(make, style="exit 0", test="""echo '["a", 1]' >> $GREENTRAIN_DURATIONS; exit 3""", seeds="")
    assert main([str(make)], TIERS) == 3
    lines = capfd.readouterr().out.splitlines()
    assert "test           0.0     9  failed" in lines
    assert "seeds            -     6  not run" in lines
    assert "    1.0 s  test   a" in lines
    assert lines[-1] == "make check: failed in test"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_check_that_is_ended_ends_its_tier_and_says_how_far_it_got(
    make: Path, tmp_path: Path, number: signal.Signals
) -> None:
    write_targets(make, style="echo $$ > begun.part; mv begun.part begun; exec sleep 600")
    check = subprocess.Popen(
        [sys.executable, "-m", "sandbox.checks", make],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert check.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if number is signal.SIGINT:
            os.killpg(check.pid, number)  # as a terminal does
        else:
            check.send_signal(number)
        said, _ = check.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(check.pid, signal.SIGKILL)
        check.communicate()
    assert check.returncode == (130 if number is signal.SIGINT else 128 + number)
    assert said.splitlines()[-1] == "make check: failed in style"
    assert not Path(f"/proc/{(tmp_path / 'begun').read_text().strip()}").exists()


def hear_interrupts() -> None:
    """A shell has SIGINT ignored in what it runs in the background, and so would these."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_durations_are_summed_by_test_and_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "durations"
    file.write_text('["a", 0.5]\n["b", 1]\n["a", 2.25]\n["b", 3')
    assert read_durations(file) == {"a": 2.75, "b": 1}
    assert read_durations(tmp_path / "none") == {}


def test_the_summary_names_minutes_aims_and_the_slowest_tests() -> None:
    tests = {f"tests/x.py::test_{i}": float(i) for i in range(SLOWEST + 5)}
    ended = [Ended(TIERS[0], 6, 0, {}), Ended(TIERS[1], 541, 0, tests), Ended(TIERS[2], 300, 0, {"y": 99.96})]
    expected = """
        tier       minutes   aim
        style          0.1
        test           9.0     9  longer than it should take
        seeds          5.0     6
        together      14.1

        the 10 slowest tests, fixtures included
          100.0 s  seeds  y
           14.0 s  test   tests/x.py::test_14
        """
    said = format_summary(TIERS, ended)
    assert said.startswith(textwrap.dedent(expected).rstrip())
    assert "test_6" in said
    assert "test_5" not in said
    assert said.endswith("\n\nmake check: everything holds")
