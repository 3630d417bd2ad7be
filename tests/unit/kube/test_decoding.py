"""JSON of any depth is read; what is too deep is cut off, and nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greentrain.core.admission import Refused, decide_admission
from greentrain.core.limits import find_barrier, find_metadata_excess
from greentrain.kube.decoding import KEPT_LEVELS, decode, flatten, whole_lines
from greentrain.kube.redaction import find_secrets
from greentrain.kube.template import find_template_problems
from tests.support.manifests import build_job
from tests.support.snapshots import job_of

READ = 201
"""Levels that pydantic-core's decoder reads."""


def lists(levels: int) -> str:
    return "[" * levels + "]" * levels


def maps(levels: int) -> str:
    return '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1)


def levels_of(value: Any) -> int:
    level, count = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        level, count = [c for v in level for c in (v.values() if isinstance(v, dict) else v)], count + 1
    return count


@pytest.mark.parametrize("write", [lists, maps])
@pytest.mark.parametrize("levels", [1, KEPT_LEVELS, READ, READ + 1, 990, 1350, 5_000, 10_000])
@pytest.mark.parametrize("kind", [bytes, str])
def test_depth_does_not_matter(write: Any, levels: int, kind: type) -> None:
    text = write(levels)
    found = levels_of(decode(text.encode() if kind is bytes else text))
    assert found == (levels if levels <= READ else KEPT_LEVELS)


def test_one_deep_object_of_a_list_leaves_the_others_as_they_are() -> None:
    others = [
        {"metadata": {"name": f"job-{i}", "note": '[{"]}\\'}, "spec": {"a": [1, 2.5, None]}} for i in range(3)
    ]
    written = [json.dumps(o) for o in others]
    written.insert(1, f'{{"metadata":{{"name":"deep"}},"spec":{{"a":{lists(1350)},"b":"[["}}}}')
    page = decode(f'{{"metadata":{{"resourceVersion":"7"}},"items":[{",".join(written)}]}}')
    assert page["metadata"] == {"resourceVersion": "7"}
    deep = page["items"].pop(1)
    assert (deep["metadata"], deep["spec"]["b"]) == ({"name": "deep"}, "[[")
    assert page["items"] == others


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(['"', "\\", "[{", '\\"]', "}}"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(value=_values, ascii_only=st.booleans(), spaced=st.booleans())
def test_what_is_not_too_deep_is_read_as_it_is_beside_what_is(
    value: Any, ascii_only: bool, spaced: bool
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1 if spaced else None)
    assert decode(text) == value
    beside = decode(f'{{"before":{text},"deep":{lists(1000)},"after":{text}}}')
    assert (beside["before"], beside["after"]) == (value, value)


@pytest.mark.parametrize(
    "text",
    ["", "[", '{"a":1', "[" * 5_000, lists(5_000)[:-1], '["' + lists(300), f'{{"a":{lists(300)},"b":"x', "x"],
)
def test_what_is_no_json_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each reader has its own words
        decode(text)


def test_half_a_surrogate_pair_is_let_pass() -> None:
    assert decode(b'["\\ud800"]') == ["\ud800"]


@pytest.mark.parametrize("levels", [KEPT_LEVELS, READ])
def test_nothing_that_walks_through_a_spec_overflows_at_the_depth_that_is_read(levels: int) -> None:
    """As far below the top as a pass is, a recursion of two frames a level would need 400 of 1,000."""
    for write in (lists, maps):
        manifest = build_job()
        worker = manifest["spec"]["tfReplicaSpecs"]["Worker"]
        worker["template"] = {"metadata": decode(write(levels)), "spec": decode(write(levels))}
        manifest["spec"]["energy"] = manifest["spec"]["note"] = decode(write(levels))
        assert find_barrier(manifest["spec"])[0].path.startswith("spec.tfReplicaSpecs.Worker.template.")
        assert isinstance(
            decide_admission(job_of(manifest), find_template_problems(manifest["spec"])), Refused
        )
        assert find_secrets(manifest) == frozenset()
        assert find_metadata_excess({"managedFields": decode(write(levels))}) == ()


def test_a_text_is_cut_only_where_python_could_not_read_it() -> None:
    assert levels_of(decode(lists(READ))) == READ
    assert decode(json.dumps([[]] * 1_000)) == [[]] * 1_000
    assert levels_of(decode(lists(READ + 1))) == KEPT_LEVELS
    assert levels_of(json.loads(flatten(lists(9_000).encode()))) == KEPT_LEVELS
    assert flatten(b'["[", {"a": "\\"]"}]') == b'["[", {"a": "\\"]"}]'


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"one\ntwo\n"], [b"one", b"two"]),
        ([b"on", b"e\ntw", b"o", b"\n"], [b"one", b"two"]),
        ([b"one\n", b"\n", b"cut o"], [b"one", b""]),
        ([b"o"] * 1_000 + [b"\n"], [b"o" * 1_000]),
        ([], []),
    ],
)
async def test_lines_come_whole_however_they_are_cut(chunks: list[bytes], lines: list[bytes]) -> None:
    async def come() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    assert [line async for line in whole_lines(come())] == lines
