"""Messages made from a table are on the wire what a compiled .proto file would give."""

from __future__ import annotations

import pytest

from greentrain.devices.messages import build_messages

SPEC = {
    "Pod": {"name": (1, "string"), "cards": (3, "repeated Card"), "cpus": (4, "repeated int64")},
    "Card": {"id": (2, "string"), "lost": (5, "bool")},
}


def test_a_message_is_written_as_proto3_writes_it() -> None:
    messages = build_messages("v1", SPEC)
    pod = messages["Pod"](name="a", cards=[messages["Card"](id="b", lost=True)], cpus=[1, 300])
    assert pod.SerializeToString() == (
        b"\x0a\x01a"  # 1, text
        b"\x1a\x05\x12\x01b\x28\x01"  # 3, message of 5 bytes: 2, text; 5, number
        b"\x22\x03\x01\xac\x02"  # 4, packed numbers
    )


def test_fields_of_a_newer_version_are_passed_over() -> None:
    pod = build_messages("v1", SPEC)["Pod"].FromString(b"\x7a\x01?\x0a\x01a")
    assert pod.name == "a"


def test_two_packages_of_one_name_do_not_meet() -> None:
    first = build_messages("v1", {"Pod": {"name": (1, "string")}})["Pod"]
    second = build_messages("v1", {"Pod": {"uid": (1, "string")}})["Pod"]
    assert second.FromString(first(name="a").SerializeToString()).uid == "a"


@pytest.mark.parametrize("written", ["Missing", "repeated Missing", "map<string, string>", "repeated"])
def test_an_unknown_type_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"Pod\.name"):
        build_messages("v1", {"Pod": {"name": (1, written)}})
