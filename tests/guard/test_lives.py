"""The lives of seeded worlds are each played once in a run, and the chosen ones are a fifth that misses nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from sandbox.checks import LIVES, ROOT
from tests.choose import MODULES, read_suite
from tests.support.lives import SHARE, Suite, choose, once, read_chosen

TESTS = ROOT / "tests"


def name_module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_every_suite_is_known_and_is_among_those_that_make_seeds_plays() -> None:
    suites = [p for p in TESTS.rglob("test_*.py") if re.search(r"mark\.(life\(|all_lives)", p.read_text())]
    here = Path(__file__)
    assert sorted(name_module(p) for p in suites if p != here) == sorted(MODULES)
    named = re.search(r"^LIVES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named is not None
    folders = [ROOT / name for name in named[1].split()]
    assert [p for p in suites if p != here and not any(p.is_relative_to(f) for f in folders)] == []


@pytest.mark.parametrize("module", MODULES)
def test_a_fifth_of_each_suites_seeds_is_chosen(module: str) -> None:
    suite = read_suite(module)
    assert list(suite.chosen) == sorted(set(suite.chosen) & set(suite.seeds))
    assert len(suite.chosen) == suite.count // SHARE


def test_no_suite_is_chosen_for_that_is_not_there() -> None:
    assert sorted(read_chosen()) == sorted(read_suite(module).name for module in MODULES)


@pytest.mark.parametrize(
    ("met", "count", "chosen"),
    [
        ({0: {"a"}, 1: {"a", "b"}, 2: {"c"}}, 2, (1, 2)),
        # The rarest next, then what few of the chosen have met; of equals the lowest.
        ({0: {"a"}, 1: {"a"}, 2: {"a", "b"}, 3: {"a", "b"}, 4: {"a"}}, 3, (0, 2, 3)),
        ({0: {"a"}, 1: {"b"}, 2: {"a"}}, 3, (0, 1, 2)),
    ],
)
def test_the_chosen_meet_everything_and_what_is_rare_more_than_once(
    met: dict[int, Set[str]], count: int, chosen: tuple[int, ...]
) -> None:
    assert choose(met, count) == chosen


def test_too_few_are_not_chosen() -> None:
    with pytest.raises(ValueError, match="1 lives of 2 do not meet b; choose more of them"):
        choose({0: {"a"}, 1: {"b"}}, 1)


def test_what_must_happen_and_does_not_is_found() -> None:
    suite = Suite("numbers", 4, lambda seed: seed, lambda life: [f"{life} lived"], {"0 lived", "3 lived"})
    assert suite.find_missing(suite.seeds) == []
    assert suite.find_missing([1, 3]) == ["0 lived"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A run of its own."""
    before = os.environ[LIVES]
    os.environ[LIVES] = str(tmp_path)
    yield tmp_path
    os.environ[LIVES] = before


def test_what_was_made_is_made_once(folder: Path) -> None:
    made: list[int] = []

    def make() -> list[int]:
        made.append(len(made))
        return [len(made)]

    assert [once("x", make), once("x", make), once("y", make)] == [[1], [1], [2]]
    assert [p.name.partition(".")[0] for p in sorted(folder.iterdir()) if p.suffix != ".lock"] == ["x", "y"]


def test_what_failed_is_not_kept(folder: Path) -> None:
    def fail() -> int:
        raise AssertionError("broken")

    for _ in range(2):
        with pytest.raises(AssertionError, match="broken"):
            once("x", fail)
    assert once("x", lambda: 1) == 1
    assert len([p for p in folder.iterdir() if p.suffix != ".lock"]) == 1


def test_players_side_by_side_play_no_life_twice(folder: Path) -> None:
    played: Counter[int] = Counter()

    def play_all(_player: int) -> list[int]:
        # Each opens the lock for itself, as a process does; the kernel makes no difference between them.
        return [once(f"life-{seed}", partial(live, seed)) for seed in range(10)]

    def live(seed: int) -> int:
        played[seed] += 1
        time.sleep(0.02)
        return seed

    with ThreadPoolExecutor(3) as players:
        assert list(players.map(play_all, range(3))) == [list(range(10))] * 3
    assert played == dict.fromkeys(range(10), 1)
    assert list(folder.glob("*.partial")) == []


ITEMS = """
import pytest
from tests.support.lives import Suite

LIVES = Suite("budgets", 200, lambda seed: seed, lambda life: [], frozenset())

@pytest.mark.life(LIVES)
def test_one(seed):
    assert LIVES.play(seed) == seed

@pytest.mark.all_lives
def test_all():
    pass

def test_other():
    pass
"""


COLLECT = """
import json, sys
import pytest

class Names:
    def pytest_collection_finish(self, session):
        found.append([item.name for item in session.items])

found = []
for seeds in sys.argv[3:]:
    words = ["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest", "-c", sys.argv[1]]
    assert pytest.main([*words, f"--seeds={seeds}", sys.argv[2]], plugins=[Names()]) == 0
print(json.dumps(found))
"""


def collect(file: Path, *seeds: str) -> list[list[str]]:
    """The tests that would run with each value of `--seeds`, by their names."""
    words = [sys.executable, "-c", COLLECT, str(ROOT / "pyproject.toml"), str(file), *seeds]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found: list[list[str]] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_the_chosen_and_the_others_are_all_tests_and_have_none_in_common(tmp_path: Path) -> None:
    file = tmp_path / "test_items.py"
    file.write_text(ITEMS)
    everything, chosen, others, further = collect(file, "all", "chosen", "others", "200-202")
    assert len(everything) == 202
    assert sorted(chosen + others) == sorted(everything)
    assert set(chosen) == {f"test_one[{seed}]" for seed in read_chosen()["budgets"]} | {"test_other"}
    assert further == ["test_one[200]", "test_one[201]", "test_one[202]"]
