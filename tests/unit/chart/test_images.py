"""What an image is named by, where its base comes from, and what is sent to a node that has part of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from sandbox import images
from sandbox.images import Image
from sandbox.shell import SandboxError

ROOT = Path(__file__).parents[3]

TARGETS = """\
http://mirror.example.org/debian/|bookworm|main|Debian
http://mirror.example.org/debian/|bookworm|main|Debian
http://mirror.example.org/debian/|bookworm|non-free|Debian
http://mirror.example.org/debian/|bookworm-updates|main|$(ORIGIN)
http://mirror.example.org/debian-security/|bookworm-security|main|Debian
http://mirror.example.org/debian/|trixie|main|Debian
https://packages.example.org/node|bookworm|main|Some Vendor
https://packages.example.org/cloud|cloud-bookworm|main|Cloud
"""


def test_only_debians_own_suites_of_the_release_become_the_bases_sources() -> None:
    assert images.parse_debian_sources(TARGETS) == (
        "deb http://mirror.example.org/debian/ bookworm main\n"
        "deb http://mirror.example.org/debian/ bookworm-updates main\n"
        "deb http://mirror.example.org/debian-security/ bookworm-security main\n"
    )


def test_a_machine_without_debians_sources_has_none() -> None:
    assert images.parse_debian_sources("https://packages.example.org/node|nodistro|main|Some Vendor\n") == ""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of everything images are made from."""
    images.apply_source(ROOT, tmp_path / "tree")
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("changed", "renamed"),
    [
        ("operator/greentrain/__init__.py", {"operator", "agent", "trainer"}),
        ("requirements/operator.txt", {"operator"}),
        ("requirements/agent.txt", {"agent"}),
        ("requirements/trainer-cpu.txt", {"tensorflow", "trainer", "own-script"}),
        ("requirements/uv.txt", {"operator", "agent", "tensorflow", "trainer", "own-script"}),
        ("examples/own-script/train.py", {"own-script"}),
        ("Dockerfile", {"operator", "agent", "tensorflow", "trainer", "own-script"}),
    ],
)
def test_an_image_is_renamed_when_something_it_is_made_from_changes(
    tree: Path, changed: str, renamed: set[str]
) -> None:
    before = {image.repository: image.tag for image in images.decide_images(tree)}
    with (tree / changed).open("a") as stream:
        stream.write("\n# changed\n")
    after = {image.repository: image.tag for image in images.decide_images(tree)}
    assert {name.rpartition("/")[2] for name in before if before[name] != after[name]} == renamed


def test_a_copy_of_the_sources_makes_the_same_images(tree: Path) -> None:
    assert images.decide_images(tree) == images.decide_images(ROOT)


def test_a_missing_source_is_named(tree: Path) -> None:
    (tree / "Dockerfile").unlink()
    with pytest.raises(SandboxError, match=r"Dockerfile is missing"):
        images.decide_images(tree)


def test_compiled_python_does_not_count(tree: Path) -> None:
    before = images.decide_images(tree)
    cache = tree / "operator" / "greentrain" / "__pycache__"
    cache.mkdir()
    (cache / "x.cpython-311.pyc").write_bytes(b"x")
    assert images.decide_images(tree) == before


def test_only_what_the_chart_runs_has_no_fixed_name() -> None:
    assert Image(images.OPERATOR, "a1").references == ("localhost/greentrain/operator:a1",)
    assert Image(images.AGENT, "a1").references == ("localhost/greentrain/agent:a1",)
    assert Image(images.TRAINER, "a1").references == (
        "localhost/greentrain/trainer:a1",
        "localhost/greentrain/trainer:dev",
    )


def put(layout: Path, content: bytes) -> str:
    """Add a blob; returns its digest."""
    digest = hashlib.sha256(content).hexdigest()
    folder = layout / "blobs" / "sha256"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / digest).write_bytes(content)
    return f"sha256:{digest}"


def put_image(layout: Path, image: Image, layers: list[bytes]) -> str:
    """Add an image of these layers; returns its manifest's digest."""
    config = put(layout, json.dumps({"of": image.reference}).encode())
    manifest = {"config": {"digest": config}, "layers": [{"digest": put(layout, layer)} for layer in layers]}
    digest = put(layout, json.dumps(manifest).encode())
    index = layout / "index.json"
    known = json.loads(index.read_text())["manifests"] if index.exists() else []
    annotations = {"org.opencontainers.image.ref.name": image.reference}
    known.append({"digest": digest, "size": 1, "annotations": annotations})
    index.write_text(json.dumps({"schemaVersion": 2, "manifests": known}))
    return digest


BASE, TENSORFLOW, CODE = b"base", b"tensorflow", b"code"
TRAINER = Image(images.TRAINER, "a1")
OPERATOR = Image(images.OPERATOR, "b2")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A layout of two images that share their base layer."""
    put_image(tmp_path, TRAINER, [BASE, TENSORFLOW, CODE])
    put_image(tmp_path, OPERATOR, [BASE, CODE])
    return tmp_path


def digest_of(content: bytes) -> str:
    """The digest of a blob."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def read_archive(path: Path) -> tuple[list[str], list[str]]:
    """Image names in an archive's index and blobs in it."""
    with tarfile.open(path) as archive:
        index = archive.extractfile("index.json")
        assert index is not None
        manifests = json.loads(index.read())["manifests"]
        names = [m["annotations"]["io.containerd.image.name"] for m in manifests]
        blobs = [n.replace("blobs/sha256/", "sha256:") for n in archive.getnames() if n.startswith("blobs/")]
    return names, blobs


def test_an_archive_names_every_image_and_holds_a_shared_layer_once(layout: Path, tmp_path: Path) -> None:
    images.build_archive(layout, [TRAINER, OPERATOR], (), tmp_path / "all.tar")
    names, blobs = read_archive(tmp_path / "all.tar")
    assert names == [*TRAINER.references, *OPERATOR.references]
    assert len(blobs) == len(set(blobs)) == 2 + 2 + 3
    assert digest_of(BASE) in blobs


def test_layers_the_node_has_are_not_sent_again(layout: Path, tmp_path: Path) -> None:
    present = {digest_of(BASE), digest_of(TENSORFLOW)}
    images.build_archive(layout, [TRAINER], present, tmp_path / "rest.tar")
    _, blobs = read_archive(tmp_path / "rest.tar")
    assert digest_of(CODE) in blobs
    assert not present & set(blobs)


def test_an_image_that_was_not_built_is_named_with_the_remedy(layout: Path, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="python3 -m sandbox images"):
        images.build_archive(layout, [Image(images.TRAINER, "zz")], (), tmp_path / "none.tar")


def test_pruning_leaves_what_is_named_and_no_blob_more(layout: Path) -> None:
    images.apply_pruning(layout, {OPERATOR.reference})
    assert set(images.read_layout(layout)) == {OPERATOR.reference}
    left = {path.name for path in (layout / "blobs" / "sha256").iterdir()}
    assert digest_of(CODE).removeprefix("sha256:") in left
    assert digest_of(TENSORFLOW).removeprefix("sha256:") not in left


def test_no_layout_means_no_images(tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    assert images.read_layout(tmp_path) == {}


def test_the_images_of_a_node_are_read_by_name() -> None:
    listing = (
        "REF TYPE DIGEST SIZE PLATFORMS LABELS\n"
        "localhost/greentrain/trainer:dev application/vnd.oci.image.manifest.v1+json sha256:ab 381.8 MiB linux/amd64 -\n"
    )
    assert images.parse_image_listing(listing) == {"localhost/greentrain/trainer:dev": "sha256:ab"}


def test_nothing_of_the_machine_is_recorded_in_what_builds_the_images() -> None:
    for name in (
        "Dockerfile",
        ".dockerignore",
        *(f"requirements/{p.name}" for p in (ROOT / "requirements").iterdir()),
    ):
        text = (ROOT / name).read_text()
        assert "://" not in text, name
        assert "--index-url" not in text, name


def test_only_the_agent_runs_as_root() -> None:
    users: dict[str, str] = {}
    stage = ""
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("FROM "):
            stage = line.split()[-1]
        elif line.startswith("USER "):
            users[stage] = line.split()[1]
    # The trainer stands on `tensorflow`.
    assert users == {"tensorflow": "10001:10001", "operator": "10001:10001", "agent": "0:0"}
