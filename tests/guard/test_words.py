"""What people read is in the field's own words: a private vocabulary would have to be learnt beside that of Kubernetes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

READ = {
    "operator": "*.py",
    "trainer": "*.py",
    "sandbox": "*.py",
    "charts": "*",
    "docs": "*.md",
    "examples": "*",
    "crds": "*",
    ".": "*.md",
}
"""Folders with the files in them that people read."""

INSTEAD = {
    r"tell(s|ing)?|told|untold|retold": "report, say, show, explain, distinguish, warn",
    r"nobody('s)?|no one": "no pod, no agent, nothing; what it is that does not",
    r"somebody('s)?|someone('s)?": "a user, an administrator, another program",
    r"whoever|whomever": "anyone who; or who it is",
    r"anybody('s)?": "anyone; or who it is",
    r"reckon(s|ed|ing)?": "compute, count",
    r"19 times of 20": "at 95 % confidence",
    r"for people": "say the form: with its unit, in one sentence",
}
"""Words that are not used, with what is said in their place."""


def find_files() -> list[Path]:
    found = []
    for folder, pattern in READ.items():
        paths = (ROOT / folder).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern)
        found += [p for p in paths if p.is_file() and p.suffix not in (".pyc", ".svg", ".tgz", ".png")]
    return sorted(found)


FILES = find_files()


@pytest.mark.parametrize("word", INSTEAD, ids=lambda word: word.split("|")[0])
def test_a_word_of_our_own_is_not_used(word: str) -> None:
    # Also as a part of a name: `_tell_jobs`, `told_once`.
    pattern = re.compile(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"write {INSTEAD[word]}:\n" + "\n".join(found)


def test_the_guard_reads_what_people_read() -> None:
    names = {str(p.relative_to(ROOT)) for p in FILES}
    assert {
        "README.md",
        "docs/tasks/budgets.md",
        "charts/greentrain/values.yaml",
        "crds/greentrain.dev_nodepowers.yaml",
    } <= names
    assert "operator/greentrain/core/lifecycle/decide.py" in names
