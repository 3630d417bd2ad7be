"""Every page, file and heading that a text of the repository points to is there: a page that moves takes all its mentions along."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FOLDERS = (
    ".ci",
    "charts",
    "crds",
    "docs",
    "examples",
    "operator",
    "requirements",
    "sandbox",
    "tests",
    "trainer",
)
"""The repository's own folders: beside them lie environments and caches. Files that are no text are passed over."""

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
"""A link or a picture of Markdown, with what it points to."""

MENTION = re.compile(r"(?<![\w./-])docs/[\w/-]+\\?\.(?:md|py|svg)(?:#[\w-]+)?")
r"""A page, picture or source that a text names by its path; `\.` in a pattern of a test is a dot."""

FENCE = re.compile(r"^\s*(```|~~~)")

ELSEWHERE = "docs/methodology/llm_inference.md"
"""A page of another repository, quoted as the source of a figure."""


def find_texts() -> dict[Path, str]:
    paths = [path for path in ROOT.iterdir() if path.is_file()]
    paths += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {path: text for path in sorted(paths) if path.suffix != ".pyc" and (text := read(path))}


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


TEXTS = find_texts()
PAGES = sorted(path for path in TEXTS if path.suffix == ".md")


def prose(text: str) -> list[str]:
    """The lines of a page that are not code: what stands between fences is neither link nor heading."""
    lines, code = [], False
    for line in text.splitlines():
        if FENCE.match(line):
            code = not code
        elif not code:
            lines.append(line)
    return lines


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors that GitHub gives to a page's headings; a heading that stands there twice gets `-1` the second time."""
    found: dict[str, int] = {}
    made = set()
    for line in prose(read(page)):
        if match := re.match(r"#{1,6} +(.*?) *#* *$", line):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1])
            anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            made.add(f"{anchor}-{found[anchor]}" if anchor in found else anchor)
            found[anchor] = found.get(anchor, 0) + 1
    return frozenset(made)


def find_fault(page: Path, anchor: str) -> str:
    """What is wrong with a target; empty where it is there."""
    if not page.exists():
        return "there is no such file"
    if anchor and (page.suffix != ".md" or anchor not in anchors(page)):
        return f"no heading of {page.relative_to(ROOT)} has this anchor"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_has_a_target(page: Path) -> None:
    found = []
    for target in LINK.findall("\n".join(prose(TEXTS[page]))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        fault = find_fault((page.parent / path).resolve() if path else page, anchor)
        if fault:
            found.append(f"{target}: {fault}")
    assert not found, "\n".join(found)


def test_every_page_that_is_named_by_its_path_is_there() -> None:
    found = []
    for path, text in TEXTS.items():
        for number, line in enumerate(text.splitlines(), 1):
            for mention in MENTION.findall(line):
                page, _, anchor = mention.replace("\\", "").partition("#")
                fault = "" if page == ELSEWHERE else find_fault(ROOT / page, anchor)
                if fault:
                    found.append(f"{path.relative_to(ROOT)}:{number}: {mention}: {fault}")
    assert not found, "\n".join(found)


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    listed = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(TEXTS[index])}
    pages = {page for page in PAGES if page.is_relative_to(index.parent) and page != index}
    assert pages
    assert pages <= listed, sorted(str(page.relative_to(ROOT)) for page in pages - listed)


def test_the_guard_sees_links_mentions_and_headings() -> None:
    assert find_fault(ROOT / "docs" / "nowhere.md", "") == "there is no such file"
    assert find_fault(ROOT / "docs/README.md", "nowhere")
    assert not find_fault(ROOT / "docs/start/install.md", "what-it-may-do-and-what-a-stolen-token-could")
    named = {m for text in TEXTS.values() for m in MENTION.findall(text)}
    assert {"docs/start/install.md", r"docs/start/install\.md", "docs/reference/restarts.md"} <= named
    assert sum(len(LINK.findall(TEXTS[page])) for page in PAGES) > 100
