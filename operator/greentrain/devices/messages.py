"""Protobuf message classes from a table, for kubelet's small gRPC interfaces.

Their stubs are not published, and generated code is tied to the protobuf version that generated it. A node agent may share its
environment with a TensorFlow that needs another version. Classes built at run time work with every version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Spec = Mapping[str, Mapping[str, tuple[int, str]]]
"""Message → field → its number and type as a .proto file writes it: `string`, `repeated int64`, `repeated Pod`."""

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _FIELD.TYPE_STRING,
    "bool": _FIELD.TYPE_BOOL,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
    "uint64": _FIELD.TYPE_UINT64,
}


def build_messages(package: str, spec: Spec) -> dict[str, type[Any]]:
    """The message classes of one proto3 package, by name.

    They have a descriptor pool of their own: a common package name such as the kubelet's `v1` would collide in the pool that
    all libraries of the program share.

    Raises:
        ValueError: a field's type is neither a message of the spec nor a scalar known here.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in spec.items():
        message = file.message_type.add(name=name)
        for field, (number, written) in fields.items():
            repeated, _, kind = written.rpartition(" ")
            added = message.field.add(name=field, number=number)
            added.label = _FIELD.LABEL_REPEATED if repeated == "repeated" else _FIELD.LABEL_OPTIONAL
            if kind in _SCALARS:
                added.type = _SCALARS[kind]
            elif kind in spec:
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                raise ValueError(f"Field {name}.{field} has the unknown type «{written}».")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in spec
    }
