"""Reads and writes manifest files so that whatever is not converted stays as its author wrote it.

Kubernetes' own YAML packages drop comments and quoting. A file is cut into its documents at the `---` lines. A document that is
not converted is passed on byte for byte; a converted one keeps its comments, key order, quotes and indentation through
ruamel.yaml's round trip. JSON is read as well, and written as JSON.
"""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import PurePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import Comment, CommentedMap, CommentedSeq, Format, TaggedScalar
from ruamel.yaml.error import CommentMark, MarkedYAMLError, YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarstring import FoldedScalarString, LiteralScalarString
from ruamel.yaml.tokens import CommentToken

Plain = Any
"""The values of JSON: mappings with string keys, lists, strings, numbers, booleans and None."""

MAX_NODES = 1_000_000
"""Most nodes one document may unfold to: aliases of aliases grow without bound ("a billion laughs")."""

_MARKER = re.compile(r"^---(?=[ \t\n]|\Z)", re.MULTILINE)
_FIRST_ITEM = re.compile(
    r"^( *)[^\s#-][^\n]*:[ \t]*(?:#[^\n]*)?\n(?:[ \t]*(?:#[^\n]*)?\n)*( *)- ", re.MULTILINE
)


class UnreadableError(Exception):
    """A text without manifests; the message is a sentence for the user who gave the file."""


@dataclass(slots=True)
class Document:
    """One document of a file: its text as written, and its content."""

    text: str
    """With its `---` line, as in the file."""
    tree: Any
    """Maps and lists of the round trip, to be changed in place; None where the document is empty."""
    changed: bool = False
    """Whether the tree is written instead of the text."""

    @property
    def label(self) -> str:
        """`Kind/name`, as far as the document has them."""
        if not isinstance(self.tree, dict):
            return ""
        meta = self.tree.get("metadata")
        meta = meta if isinstance(meta, dict) else {}
        name = meta.get("name") or meta.get("generateName") or ""
        return f"{self.tree.get('kind') or '?'}/{name}" if name else str(self.tree.get("kind") or "")

    def write(self) -> str:
        """The document's text for the output, with a line end."""
        if not self.changed:
            return self.text if self.text.endswith("\n") or not self.text else f"{self.text}\n"
        lines = "\r\n" if "\r\n" in self.text else "\n"
        return _dump(self.tree, self.text.replace("\r\n", "\n")).replace("\n", lines)


def read_documents(raw: bytes) -> list[Document]:
    """Cut a file into documents and read each.

    Raises:
        UnreadableError: not UTF-8, or a document that is neither YAML nor JSON, with its line.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
    unified = text.replace("\r\n", "\n")
    starts = [0, *(m.start() for m in _MARKER.finditer(unified))]
    ends = [*starts[1:], len(unified)]
    documents = []
    for start, end in zip(starts, ends, strict=True):
        part = unified[start:end]
        tree = _read(part, line=unified.count("\n", 0, start) + 1)
        original = part.replace("\n", "\r\n") if "\r\n" in text else part
        if part:
            documents.append(Document(original, tree))
    return documents


def _read(part: str, *, line: int) -> Any:
    body = part[3:] if _MARKER.match(part) else part
    if body.lstrip().startswith("{"):
        try:
            return _to_tree(json.loads(body))
        except (ValueError, RecursionError):
            pass  # YAML's own flow style begins in the same way
    try:
        tree = _build_yaml(part).load(body)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"line {line + mark.line}" if mark is not None else f"the document at line {line}"
        what = " ".join(str(error.problem or error.context or "").split()) or "it cannot be parsed"
        raise UnreadableError(
            f"{at} is not YAML: {what}; correct it there (a template must be rendered first)"
        ) from None
    except (
        YAMLError,
        ValueError,
        RecursionError,
        AttributeError,
        TypeError,
        KeyError,
        AssertionError,
    ) as error:
        # ruamel.yaml fails with more than its own errors on tags and directives it does not expect.
        what = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(f"the document at line {line} is not YAML: {what}; correct it there") from None
    check_size(tree, line=line)
    return tree


def check_size(tree: Any, *, line: int) -> None:
    """Refuse what is not finite once aliases are unfolded.

    Raises:
        UnreadableError: an alias inside its own anchor, or more than MAX_NODES nodes.
    """
    try:
        for count, _ in enumerate(_unfold(tree, ())):
            if count > MAX_NODES:
                raise UnreadableError(
                    f"the document at line {line} unfolds to more than {MAX_NODES} nodes; write out its aliases"
                )
    except RecursionError:
        raise UnreadableError(f"the document at line {line} is nested too deeply to be a manifest") from None


def _unfold(node: Any, above: tuple[int, ...]) -> Iterator[None]:
    yield None
    if id(node) in above:
        raise UnreadableError("an alias stands inside its own anchor; write the value out")
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _unfold(child, (*above, id(node)))


def to_plain(node: Any) -> Plain:
    """A document's content, without comments, anchors and styles."""
    if isinstance(node, dict):
        return {str(k): to_plain(v) for k, v in node.items()}
    if isinstance(node, list):
        return [to_plain(v) for v in node]
    if node is None or isinstance(node, bool):
        return node
    if isinstance(node, ScalarBoolean):
        return bool(node)
    for scalar in (int, float, str):
        if isinstance(node, scalar):
            return scalar(node)
    if isinstance(node, TaggedScalar):
        return to_plain(node.value)
    return node.isoformat() if isinstance(node, date) else str(node)


def _to_tree(plain: Plain) -> Any:
    if isinstance(plain, dict):
        return CommentedMap((k, _to_tree(v)) for k, v in plain.items())
    return CommentedSeq(_to_tree(v) for v in plain) if isinstance(plain, list) else plain


class _Representer(RoundTripRepresenter):
    """Writes null as null, as kubectl does, instead of nothing."""

    def represent_none(self, value: None) -> Any:
        del value
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def _build_yaml(text: str) -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 1 << 16  # no line is folded that was not
    found = _FIRST_ITEM.search(text)
    offset = len(found[2]) - len(found[1]) if found else 2
    yaml.indent(mapping=2, sequence=offset + 2, offset=max(offset, 0))
    return yaml


def _dump(tree: Any, text: str) -> str:
    marker = _MARKER.match(text)
    body = text[3:] if marker else text
    lead = ""
    if marker:
        rest = body.partition("\n")[0]
        lead = f"---{rest}\n" if not rest.strip() or rest.lstrip().startswith("#") else "---\n"
    if body.lstrip().startswith("{") and _is_json(body):
        return f"{lead}{json.dumps(to_plain(tree), indent=2, ensure_ascii=False)}\n"
    stream = io.StringIO()
    _build_yaml(text).dump(tree, stream)
    written = stream.getvalue()
    if (comment := lead[3:].strip()) and written.lstrip().startswith(comment):
        written = written.lstrip()[len(comment) :].lstrip(
            "\n"
        )  # the round trip keeps the marker's comment as well
    return lead + written


def _is_json(body: str) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def expand_merges(node: Any) -> Any:
    """The same tree with every merge key (`<<`) written out, so that a merged key can be changed or removed."""
    return _expand(node, {})


def _expand(node: Any, known: dict[int, Any]) -> Any:
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = node
    if isinstance(node, CommentedMap) and node.merge:
        own = dict(node.non_merged_items())
        merged = {k: v for k, v in node.items() if k not in own}
        # Copies: a value in two places would be written with an anchor that its author did not give it.
        known[id(node)] = out = CommentedMap((k, _expand(copy.deepcopy(v), known)) for k, v in merged.items())
        for key, value in own.items():
            out[key] = _expand(value, known)
        for attribute in (Comment.attrib, Format.attrib):
            if hasattr(node, attribute):
                setattr(out, attribute, getattr(node, attribute))
        return out
    if isinstance(node, CommentedMap):
        node._ref.clear()  # maps that merged this one no longer do; ruamel.yaml would pass every change on to them
    for key, value in list(
        node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    ):
        expanded = _expand(value, known)
        if expanded is not value:
            node[key] = expanded
    return node


def rename_key(tree: CommentedMap, old: str, new: str) -> None:
    """Give a key another name in its place, with its comments."""
    position, value, comments = list(tree).index(old), tree[old], tree.ca.items.pop(old, None)
    del tree[old]
    tree.insert(position, new, value)
    if comments is not None:
        tree.ca.items[new] = comments


def insert_first(tree: CommentedMap, key: str, value: Any) -> None:
    """Put a key before all others; comments above the first one stay with that one."""
    first = next(iter(tree), None)
    above = tree.ca.comment[1] if tree.ca.comment and len(tree.ca.comment) > 1 else None
    if first is not None and above:
        _above(tree, first, list(above))
        above.clear()  # in place: the parent map shows the same list
    tree.insert(0, key, value)


def remove_key(tree: CommentedMap, key: str) -> None:
    """Remove a key with its value; comments on lines of their own after it stay."""
    keys = list(tree)
    position = keys.index(key)
    kept = _comments_after(tree, key)
    above = tree.ca.items.get(key, [None, None])[1] if len(tree.ca.items.get(key) or ()) > 1 else None
    del tree[key]
    tree.ca.items.pop(key, None)
    following = keys[position + 1] if position + 1 < len(keys) else None
    comments = [*(above or ()), *([kept] if kept else ())]
    if following is not None and comments:
        _above(tree, following, comments)
    elif position:
        for comment in comments:
            _append_comment(tree, keys[position - 1], comment)


def remove_item(tree: CommentedSeq, index: int) -> None:
    """Remove an item of a list; comments on lines of their own after it stay."""
    kept = _comments_after(tree, index)
    del tree[index]
    if kept is not None and tree:
        if index:
            _append_comment(tree, index - 1, kept)
        else:
            slots = tree.ca.items.setdefault(0, [None, None, None, None])
            slots[1] = [kept, *(slots[1] or ())]


def _above(tree: CommentedMap, key: str, tokens: list[CommentToken]) -> None:
    slots = tree.ca.items.setdefault(key, [None, None, None, None])
    slots[1] = [*tokens, *(slots[1] or ())]


def _last_leaf(tree: Any, key: str | int) -> tuple[Any, str | int]:
    """Where the round trip keeps the comment that follows a value: at its last leaf."""
    value = tree[key]
    if isinstance(value, CommentedMap | CommentedSeq) and value and not value.fa.flow_style():
        last = next(reversed(value)) if isinstance(value, CommentedMap) else len(value) - 1
        return _last_leaf(value, last)
    return tree, key


def _slot(tree: Any) -> int:
    return 2 if isinstance(tree, CommentedMap) else 0


def _comments_after(tree: Any, key: str | int) -> CommentToken | None:
    """The comment lines that follow a value, without the one on the value's own line."""
    leaf, at = _last_leaf(tree, key)
    value = leaf[at]
    slots = leaf.ca.items.get(at) or ()
    token = slots[_slot(leaf)] if len(slots) > _slot(leaf) else None
    text = token.value if isinstance(token, CommentToken) else ""
    if not isinstance(value, LiteralScalarString | FoldedScalarString):
        text = text.partition("\n")[2]  # behind a block scalar every line is one of its own
    # Behind a flow style's line without a comment they are at the end of the list around it.
    inner = tree[key]
    while isinstance(inner, CommentedMap | CommentedSeq) and inner:
        text += "".join(f"{' ' * c.start_mark.column}{c.value}" for c in inner.ca.end)
        inner = inner[next(reversed(inner)) if isinstance(inner, CommentedMap) else -1]
    if not text.strip():
        return None
    first = next(line for line in text.split("\n") if line.strip())
    column = len(first) - len(first.lstrip())
    lines = "\n".join(line.strip() and " " * column + line.strip() for line in text.rstrip().split("\n"))
    return CommentToken(f"{lines.lstrip()}\n", CommentMark(column), None)


def _append_comment(tree: Any, key: str | int, kept: CommentToken) -> None:
    leaf, at = _last_leaf(tree, key)
    slots = leaf.ca.items.setdefault(at, [None, None, None, None])
    column = kept.start_mark.column
    before = slots[_slot(leaf)]
    block = isinstance(leaf[at], LiteralScalarString | FoldedScalarString)
    text = before.value if isinstance(before, CommentToken) else "" if block else "\n"
    mark = before.start_mark if isinstance(before, CommentToken) else CommentMark(0)
    slots[_slot(leaf)] = CommentToken(f"{text}{' ' * column}{kept.value}", mark, None)


def path_name(path: str) -> str:
    """A file's name in messages."""
    return "standard input" if path == "-" else str(PurePath(path))
