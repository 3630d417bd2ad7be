"""Converts whole files: every TFJob in them, the other documents beside it, and the messages on both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml.comments import CommentedMap

from greentrain.api import names
from greentrain.cli.convert import convert_job, is_tfjob
from greentrain.cli.documents import Document, expand_merges, to_plain
from greentrain.cli.references import Difference, find_host_names, find_labels
from greentrain.cli.tfjob import mapping

Line = tuple[str, ...]
"""Parts of one sentence for the user: the file, the document, the path, the message."""

LISTS = ("List", "TFJobList")
"""What `kubectl get -o yaml` prints for several objects."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file, by its name in messages."""

    name: str
    documents: list[Document]


@dataclass(slots=True)
class Outcome:
    """What to print, the messages, and whether the operator would reject any of it."""

    text: str = ""
    lines: list[Line] = field(default_factory=list)
    refused: bool = False


def convert_sources(sources: Sequence[Source]) -> Outcome:
    """Convert every TFJob of the files, as one text."""
    outcome = Outcome()
    jobs = _job_names(sources)
    for source in sources:
        several = sum(d.tree is not None for d in source.documents) > 1
        for document in source.documents:
            outcome.lines += _convert_document(document, source.name, jobs, outcome, several=several)
            if document.text.startswith("---") or not outcome.text:
                outcome.text += document.write()
            else:
                outcome.text += f"---\n{document.write()}"
    return outcome


def _job_names(sources: Sequence[Source]) -> list[str]:
    return [
        str(mapping(tree.get("metadata")).get("name") or "")
        for source in sources
        for document in source.documents
        for _, tree in _objects(document.tree)
        if is_tfjob(tree)
    ]


def _objects(tree: Any) -> list[tuple[str, CommentedMap]]:
    """The objects of a document with the path before theirs: itself, or the items of a list."""
    if not isinstance(tree, CommentedMap):
        return []
    if tree.get("kind") not in LISTS or not isinstance(tree.get("items"), list):
        return [("", tree)]
    return [(f"items[{i}].", item) for i, item in enumerate(tree["items"]) if isinstance(item, CommentedMap)]


def _convert_document(
    document: Document, file: str, jobs: Sequence[str], outcome: Outcome, *, several: bool
) -> Iterator[Line]:
    if document.tree is None:
        return
    label = document.label
    if any(is_tfjob(tree) for _, tree in _objects(document.tree)):
        document.tree = expand_merges(document.tree)
        document.changed = True
        if document.tree.get("kind") == "TFJobList":
            document.tree["apiVersion"], document.tree["kind"] = "v1", "List"
    objects = _objects(document.tree)
    if not objects:
        yield (file, label or "a document that is not an object", "is not a TFJob; passed on unchanged")
    for prefix, tree in objects:
        where = label if several and not prefix else ""
        if not is_tfjob(tree):
            already = tree.get("apiVersion") == names.API_VERSION and tree.get("kind") == names.KIND
            what = "is a GreenTrainingJob already" if already else "is not a TFJob"
            shown = Document("", tree).label or "a document that is not an object"
            yield (file, f"{prefix.rstrip('.')} {shown}".strip(), f"{what}; passed on unchanged")
            if not already:
                yield from (
                    (file, shown, prefix + d.path, d.message) for d in _look_beside(to_plain(tree), jobs)
                )
            continue
        conversion = convert_job(tree)
        for difference in conversion.differences:
            yield (file, where, prefix + difference.path, difference.message)
        for problem in conversion.problems:
            outcome.refused = True
            yield (file, where, "cannot run", prefix + problem.path, problem.message)


def _look_beside(tree: dict[str, Any], jobs: Sequence[str]) -> Iterator[Difference]:
    """What another object has about these jobs' ranks."""
    if tree.get("kind") == "Service" and (name := mapping(tree.get("metadata")).get("name")) in jobs:
        yield Difference(
            "metadata.name",
            f"'{name}' is the name of the Service greentrain makes for the job; rename this Service",
        )
    rest = {k: v for k, v in tree.items() if k not in ("apiVersion", "kind", "status")}
    yield from find_host_names(rest, "", jobs)
    yield from find_labels(rest, "", jobs)
