"""What people read is in the field's own words: a private vocabulary would have to be learnt beside that of Kubernetes."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
"""Folders with the files in them that people read; `.` is the repository's own folder alone."""

ALL = tuple(READ)
PAGES = ("docs", "charts", "examples", "trainer", ".")
"""Where the words of the operator's own sources are not written any more."""
SOURCES = ("docs", "charts", "examples", "trainer", ".", "sandbox")

MADE = ("docs/reference/reasons.md", "charts/greentrain/files/crds/")
"""Made from the operator's sources: what is said there is looked for in the sources."""


@dataclass(frozen=True)
class Word:
    """What is said in a word's place, and the folders in which the word is not used."""

    instead: str
    folders: tuple[str, ...] = ALL


WORDS = {
    r"tell(s|ing)?|told|untold|retold": Word("report, say, show, explain, distinguish, warn"),
    r"nobody('s)?|no one": Word("no pod, no agent, nothing; what it is that does not"),
    r"somebody('s)?|someone('s)?": Word("a user, an administrator, another program"),
    r"whoever|whomever": Word("anyone who; or who it is"),
    r"anybody('s)?|everybody('s)?": Word("anyone, all; or who it is"),
    r"reckon(s|ed|ing)?": Word("compute, count"),
    r"19 times of 20": Word("at 95 % confidence"),
    r"for people": Word("say the form: with its unit, in one sentence"),
    r"bookkeeping": Word("accounting"),
    # What follows is a table of how far the words have gone: a folder is added when it is clean.
    r"last words?": Word("the final report, the termination message, the last lines"),
    r"let(s|ting)? go( of)?": Word("release, drop, restore"),
    r"for ever": Word("without end; or until what"),
    r"without a word": Word("without a message, an error, a warning"),
    r"prior": Word("the previous limit", SOURCES),
    r"strangers?|quarrels?": Word("another job's; a conflict"),
    r"(keep(s|ing)?|kept) books|books|minds?|minded": Word("accounts; reconcile, enforce", SOURCES),
    r"holders?": Word("the pod that the GPU is allocated to; the program that uses it", PAGES),
    r"(?<!on )hold|holds|held(?![-_ ]out)|holding": Word(
        "allocated to, contains, is valid, keeps, limits, blocks; a job is *on hold*", PAGES
    ),
    r"standings?": Word("state, level", (*PAGES, "operator")),
    r"heard?|hears|hearing": Word("reported, received, seen", PAGES),
    r"anew|afresh": Word("again", (*PAGES, "operator")),
    r"under fire": Word("when requests fail"),
}
"""Words that are not used."""

CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
"""Code in a page: names of the API, of files and of functions, and what a program prints."""


def find_files() -> list[Path]:
    found = []
    for folder, pattern in READ.items():
        paths = (ROOT / folder).glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern)
        found += [p for p in paths if p.is_file() and p.suffix not in (".pyc", ".svg", ".tgz", ".png")]
    return sorted(found)


FILES = find_files()


def folder_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else "."


def prose(path: Path) -> str:
    """A file's text; of a page with blanks in place of code, so that lines keep their numbers."""
    text = path.read_text()
    return CODE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text) if path.suffix == ".md" else text


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.split("|")[0])
def test_a_word_of_our_own_is_not_used(word: str) -> None:
    # Also as a part of a name: `_tell_jobs`, `told_once`.
    pattern = re.compile(rf"(?<![A-Za-z])(?:{word})(?![A-Za-z])", re.IGNORECASE)
    everywhere = WORDS[word].folders == ALL
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in FILES
        if folder_of(path) in WORDS[word].folders
        and (everywhere or not str(path.relative_to(ROOT)).startswith(MADE))
        for number, line in enumerate((path.read_text() if everywhere else prose(path)).splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"write {WORDS[word].instead}:\n" + "\n".join(found)


def test_the_guard_reads_what_people_read() -> None:
    names = {str(p.relative_to(ROOT)) for p in FILES}
    assert {
        "README.md",
        "docs/tasks/budgets.md",
        "charts/greentrain/values.yaml",
        "crds/greentrain.dev_nodepowers.yaml",
        *MADE[:1],
    } <= names
    assert "operator/greentrain/core/lifecycle/decide.py" in names
    assert {folder for word in WORDS.values() for folder in word.folders} == set(READ)
    assert {folder_of(path) for path in FILES} == set(READ)


def test_code_in_a_page_is_left_out_and_lines_keep_their_numbers() -> None:
    page = ROOT / "docs/internals/allowances.md"
    assert "`OperatorActive`" in page.read_text()
    assert "OperatorActive" not in prose(page)
    assert len(prose(page).splitlines()) == len(page.read_text().splitlines())
