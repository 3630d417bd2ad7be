"""Writes an OCI image archive of one layer, for programs that need nothing beside them.

No registry that has such an image can be reached, and a builder of images would be more than this takes: a layer, a
configuration, a manifest, an index.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping
from typing import Any

from sandbox.shell import SandboxError

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""What OCI calls the machines Linux names so."""


def build_tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    """A tar archive of files by path, each with content and mode, the same bytes every time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, (content, mode) in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            member.mode = mode
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def read_architecture() -> str:
    """What OCI calls this machine's kind.

    Raises:
        SandboxError: it is neither x86-64 nor arm64.
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise SandboxError(
            f"This machine is a {platform.machine()}; the sandbox was written for {', '.join(ARCHITECTURES)}."
        )
    return architecture


def build_image_archive(
    name: str, layer: bytes, *, architecture: str, entrypoint: list[str], user: int
) -> bytes:
    """An OCI image archive (image-spec 1.0, image-layout) of one uncompressed layer, named for containerd's import."""
    blobs: dict[str, bytes] = {}

    def put(content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return f"sha256:{digest}"

    def put_json(value: dict[str, Any]) -> tuple[str, int]:
        content = json.dumps(value, sort_keys=True).encode()
        return put(content), len(content)

    layer_digest = put(layer)
    configuration, configuration_size = put_json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": entrypoint, "User": f"{user}:{user}"},
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }
    )
    manifest, manifest_size = put_json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": configuration,
                "size": configuration_size,
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": layer_digest,
                    "size": len(layer),
                }
            ],
        }
    )
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest,
                "size": manifest_size,
                "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
                "platform": {"architecture": architecture, "os": "linux"},
            }
        ],
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps(index).encode(),
        **blobs,
    }
    return build_tar({path: (content, 0o644) for path, content in files.items()})
