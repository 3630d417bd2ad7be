"""The command line with which a person plays with simulated cards."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sandbox.simgpu import cards
from sandbox.simgpu.__main__ import main
from sandbox.simgpu.build import Libraries
from tests.contract.simgpu.conftest import STATE


def test_cards_are_made_loaded_limited_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ["--state", str(tmp_path / "state")]
    assert main(["create", *state, "--profile", "A100", "--cards", "8", "--virtual"]) == 0
    assert main(["set-load", *state, "0.5"]) == 0
    assert main(["set-limit", *state, "--card", "3", "150"]) == 0
    assert main(["advance", *state, "100"]) == 0
    capsys.readouterr()
    assert main(["show", *state]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert lines[3].split() == ["2", "A100", "50%", "205.0", "400", "400", "1410", "1.000", "20500.0", "0"]
    number, _, load, draw, limit, _, clock, speed, *_ = lines[4].split()
    assert (number, load, limit) == ("3", "50%", "150")
    assert float(draw) <= 150
    assert int(clock) < 1410
    assert float(speed) < 1


def test_faults_come_and_go(tmp_path: Path) -> None:
    state = ["--state", str(tmp_path / "state")]
    main(["create", *state])
    main(["fault", *state, "--card", "0", "not-supported", "--calls", "power,energy", "--seconds", "5"])
    with cards.open(tmp_path / "state") as opened:
        assert opened.read_card(0).faults == 1
        main(["clear-faults", *state])
        assert opened.read_card(0).faults == 0
        opened.set_limit(0, 150)
        main(["reload", *state])
        assert opened.read_card(0).limit_watts == 300


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "does not exist"),
        (["create", "--profile", "K80"], "there is no 'K80'"),
        (["create", "--cards", "17"], "17 given"),
        (["create", "--profile", "A100", "--mig", "5g.5gb"], "do not fit"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([words[0], "--state", str(tmp_path / "state"), *words[1:]]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_nvidia_smi_shows_and_sets(tmp_path: Path, libraries: Libraries) -> None:
    with cards.create(tmp_path / "state", ["V100", "A100"], seed=1) as state:
        smi = libraries.programs / "nvidia-smi"

        def run(*words: str, at: Path = state.path) -> tuple[int, str]:
            ran = subprocess.run(
                [smi, *words], env={STATE: str(at)}, capture_output=True, text=True, check=False
            )
            return ran.returncode, ran.stdout + ran.stderr

        assert run("--help")[0] == 0
        code, listing = run("-L")
        assert code == 0
        assert listing.splitlines()[1] == f"GPU 1: NVIDIA A100-SXM4-40GB (UUID: {state.read_card(1).uuid})"
        assert run("-i", "0", "-pl", "200")[0] == 0
        assert state.read_card(0).limit_watts == 200
        assert run("-i", "0", "-pl", "20") == (2, "the limit was not set: Invalid Argument\n")
        assert run(at=tmp_path / "absent") == (9, "NVML could not be initialised: Driver Not Loaded\n")
