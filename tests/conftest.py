"""What holds for every test: property tests are the same on every machine; lives are played once and chosen by `--seeds`.

docs/internals/testing.md describes the tiers and the options.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import re
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sandbox.checks import DURATIONS, LIVES
from tests.support.lives import Suite

settings.register_profile(
    "greentrain",
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("greentrain")

PARTS = ("all", "chosen", "others")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seeds",
        default="all",
        metavar="all|chosen|others|FIRST-LAST",
        help="which lives to play: `chosen` is every test but those that `others` is, which are the lives that are not "
        "chosen and the tests of all lives together; FIRST-LAST is the lives of these seeds and no other test",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No garbage is collected while a report is made, or a failure could end the worker and lose the rest of the run.

    A report parses the file of each frame. What is collected in the middle of that may warn (an unclosed transport of the
    test that failed), pytest formats the warning's traceback, and that parses too: Python 3.11.2 and 3.11.7 then raise
    SystemError, "AST constructor recursion depth mismatch", out of the outer one.
    """
    if not gc.isenabled():
        return (yield)
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


class Durations:
    """Writes down how long each test took, as soon as it is known: also of a run that is killed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._file.write(json.dumps([report.nodeid, report.duration]) + "\n")

    def pytest_unconfigure(self) -> None:
        self._file.close()


def pytest_configure(config: pytest.Config) -> None:
    read_range(config)
    if hasattr(config, "workerinput"):
        return  # a worker of xdist, which has the environment of the run that started it and reports to it
    if LIVES not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="greentrain-lives-")
        os.environ[LIVES] = folder.name
        config.add_cleanup(functools.partial(forget, folder))
    if path := os.environ.get(DURATIONS):
        config.pluginmanager.register(Durations(Path(path)))


def forget(folder: tempfile.TemporaryDirectory[str]) -> None:
    """Remove the lives of a run that has ended."""
    del os.environ[LIVES]
    folder.cleanup()


def read_range(config: pytest.Config) -> range | None:
    """The seeds that are asked for by number; None where a part of them is asked for by name."""
    asked = str(config.getoption("--seeds"))
    if asked in PARTS:
        return None
    found = re.fullmatch(r"(\d+)-(\d+)", asked)
    if found is None or int(found[1]) > int(found[2]):
        raise pytest.UsageError(f"--seeds={asked}: give {', '.join(PARTS)} or FIRST-LAST, as in 200-999")
    return range(int(found[1]), int(found[2]) + 1)


def find_suite(item: pytest.Item) -> Suite[object] | None:
    """The suite of which a test looks at one life, or at one after the other."""
    mark = item.get_closest_marker("life")
    return mark.args[0] if mark is not None else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite = find_suite(metafunc.definition)
    if suite is not None:
        metafunc.parametrize("seed", read_range(metafunc.config) or suite.seeds)


def is_asked_for(item: pytest.Item, asked: str) -> bool:
    """Whether a test belongs to the part of the lives that is asked for."""
    suite = find_suite(item)
    if asked not in PARTS:
        return suite is not None
    if suite is not None:
        assert isinstance(item, pytest.Function)
        part = "chosen" if item.callspec.params["seed"] in suite.chosen else "others"
    else:
        part = "others" if item.get_closest_marker("all_lives") else "chosen"
    return asked in ("all", part)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = str(config.getoption("--seeds"))
    kept = [item for item in items if is_asked_for(item, asked)]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    # Idle workers steal from the end of the others' queues: what takes longest must not be left for the last.
    items[:] = sorted(kept, key=is_short)


def is_short(item: pytest.Item) -> bool:
    """Whether a test starts no TensorFlow, which takes ten seconds to import on a busy core."""
    return item.get_closest_marker("tensorflow") is None
