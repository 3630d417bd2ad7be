"""Builds the images that run in the sandbox, from Debian's packages and the `Dockerfile`, where no registry has them.

The base is a Debian 12 root file system made with mmdebstrap from the machine's own package sources; buildah builds the
Dockerfile's targets on it, in a storage of its own under the cache, so that the machine's images are never touched.
What is built is kept as one OCI layout, in which images share their layers, and named by the hash of all it was made
from: the same sources are never built twice. Into a node's containerd go only the layers it lacks.

Nothing of the machine stays in an image: its CA bundle and package sources are mounted for the build alone.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import node, shell
from sandbox.cache import CA_BUNDLE, hold_lock, read_cache_directory
from sandbox.room import Need
from sandbox.shell import SandboxError
from sandbox.state import Sandbox
from sandbox.steps import Step, run_steps

ROOT = Path(__file__).resolve().parent.parent
CODENAME = "bookworm"
PREFIX = "localhost/greentrain"

OPERATOR = f"{PREFIX}/operator"
AGENT = f"{PREFIX}/agent"
TRAINER = f"{PREFIX}/trainer"
TENSORFLOW = f"{PREFIX}/tensorflow"
OWN_SCRIPT = f"{PREFIX}/own-script"

DEVELOPMENT_TAG = "dev"
"""A second tag of the images that run in jobs, so that an example's manifest can name it."""

_BASE_RECIPE: tuple[str, ...] = (
    "mmdebstrap",
    "--quiet",
    "--variant=minbase",
    "--include=python3,ca-certificates",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    # mmdebstrap copies the first two from the machine; its mirror is the machine's affair too, and lent to each build.
    '--customize-hook=rm -f "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/etc/apt/sources.list.d/*',
    '--customize-hook=: >"$1"/etc/apt/sources.list',
)

_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private", "--")
"""mmdebstrap and buildah mount inside what they build; killed, they leave no mount behind when these were theirs alone."""

_CODE = ("pyproject.toml", "README.md", "LICENSE", "operator", "trainer", "requirements/build.txt")
_BUILD = ("Dockerfile", ".dockerignore", "requirements/uv.txt")


@dataclass(frozen=True)
class Recipe:
    """How one image is made: from which file and target, and from which of the project's files."""

    repository: str
    target: str
    inputs: tuple[str, ...]
    containerfile: str = "Dockerfile"
    context: str = "."
    parent: str | None = None
    """Repository of the image it is built on, where that is one of ours; its hash then counts too."""


RECIPES: tuple[Recipe, ...] = (
    Recipe(OPERATOR, "operator", (*_BUILD, "requirements/operator.txt", *_CODE)),
    Recipe(AGENT, "agent", (*_BUILD, "requirements/agent.txt", *_CODE)),
    Recipe(TENSORFLOW, "tensorflow", (*_BUILD, "requirements/trainer-cpu.txt")),
    Recipe(TRAINER, "trainer", (*_BUILD, "requirements/trainer-cpu.txt", *_CODE)),
    Recipe(
        OWN_SCRIPT,
        "",
        ("examples/own-script/Containerfile", "examples/own-script/train.py"),
        containerfile="examples/own-script/Containerfile",
        context="examples/own-script",
        parent=TENSORFLOW,
    ),
)

INSTALLED = (OPERATOR, AGENT)
"""What the chart runs."""

SHIPPED = (*INSTALLED, TRAINER)
"""What `make demo` runs; the tests run OWN_SCRIPT too."""

ALL = (*SHIPPED, OWN_SCRIPT)


DISK = 7_500_000_000
"""Bytes of one set of images: buildah's storage with its cache (5.9 GB seen), and the OCI layout (0.9 GB seen)."""

REBUILD_DISK = 1_500_000_000
"""Bytes more when most layers are there already."""

STORAGE_BYTES = 12_000_000_000
"""Size of buildah's storage above which its build cache is emptied; one set of images and their cache takes 4 GB."""


@dataclass(frozen=True)
class Image:
    """An image that was built: `repository:tag`, where the tag is the hash of what it is made from."""

    repository: str
    tag: str

    @property
    def reference(self) -> str:
        """`repository:tag`, as a pod names it."""
        return f"{self.repository}:{self.tag}"

    @property
    def references(self) -> tuple[str, ...]:
        """Every name it gets in the sandbox.

        What the chart runs has none but its hash: a Deployment or DaemonSet rolls only when the name in it changes.
        """
        if self.repository in INSTALLED:
            return (self.reference,)
        return (self.reference, f"{self.repository}:{DEVELOPMENT_TAG}")


# --- What is to be built ----------------------------------------------------------------------------------------


def gather_input_files(root: Path, names: Iterable[str]) -> list[Path]:
    """All files under the named files and folders of the project that enter an image, sorted.

    Raises:
        SandboxError: a named file is missing.
    """
    files: list[Path] = []
    for name in names:
        path = root / name
        if path.is_dir():
            files.extend(
                f
                for f in path.rglob("*")
                if f.is_file() and "__pycache__" not in f.parts and f.suffix != ".pyc"
            )
        elif path.is_file():
            files.append(path)
        else:
            raise SandboxError(f"{path} is missing, and the images are made from it; restore it with git.")
    return sorted(files)


def build_hash(root: Path, names: Iterable[str], *more: str) -> str:
    """Twelve hexadecimal digits that change with any of the files' paths, modes or contents, or with `more`."""
    digest = hashlib.sha256()
    for word in more:
        digest.update(f"{word}\0".encode())
    for path in gather_input_files(root, names):
        executable = os.access(path, os.X_OK)
        digest.update(f"{path.relative_to(root).as_posix()}\0{executable}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def decide_base_reference() -> str:
    """Name of the base image; its tag changes with the recipe."""
    digest = hashlib.sha256("\0".join(_BASE_RECIPE).encode()).hexdigest()[:12]
    return f"{PREFIX}/debian:{CODENAME}-{digest}"


def decide_images(root: Path = ROOT) -> tuple[Image, ...]:
    """The images these sources make, in the order they are built.

    Raises:
        SandboxError: a file they are made from is missing.
    """
    images: dict[str, Image] = {}
    for recipe in RECIPES:
        parent = decide_base_reference() if recipe.parent is None else images[recipe.parent].reference
        images[recipe.repository] = Image(
            recipe.repository, build_hash(root, recipe.inputs, parent, recipe.target)
        )
    return tuple(images.values())


def decide_image(repository: str, root: Path = ROOT) -> Image:
    """The image of `repository` that these sources make."""
    return next(image for image in decide_images(root) if image.repository == repository)


def parse_debian_sources(index_targets: str, codename: str = CODENAME) -> str:
    """One-line apt sources for Debian's own suites out of `apt-get indextargets`, without other vendors' repositories.

    Each line of the input is `REPO_URI|RELEASE|COMPONENT|ORIGIN`; apt leaves `$(ORIGIN)` standing where the lists were
    never fetched, and the suite's name decides alone then. Empty when there is none.
    """
    suites = (codename, f"{codename}-updates", f"{codename}-security")
    lines: list[str] = []
    for line in index_targets.splitlines():
        uri, _, rest = line.partition("|")
        release, _, rest = rest.partition("|")
        component, _, origin = rest.partition("|")
        if release in suites and component == "main" and origin in ("Debian", "$(ORIGIN)"):
            entry = f"deb {uri} {release} main"
            if entry not in lines:
                lines.append(entry)
    return "".join(f"{line}\n" for line in lines)


# --- Building ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workshop:
    """Where images are built and kept, all of it below the cache."""

    cache: Path

    @property
    def layout(self) -> Path:
        """The OCI layout of what was built."""
        return self.cache / "images" / "oci"

    @property
    def log(self) -> Path:
        """What mmdebstrap and buildah said."""
        return self.cache / "log" / "images.log"

    @property
    def temporary(self) -> Path:
        """Buildah's TMPDIR."""
        return self.cache / "buildah" / "tmp"

    @property
    def sources(self) -> Path:
        """The machine's Debian sources as one-line entries."""
        return self.cache / "images" / "sources.list"

    def build_command(self, driver: str, *words: str | Path) -> list[str | Path]:
        """A buildah call on our own storage; the run state is not kept over a reboot."""
        place = hashlib.sha256(str(self.cache).encode()).hexdigest()[:8]
        return [
            *_OWN_MOUNTS,
            "buildah",
            "--root",
            self.cache / "buildah" / driver,
            "--runroot",
            Path("/run/greentrain-buildah") / place,
            "--storage-driver",
            driver,
            *words,
        ]

    def run(self, driver: str, *words: str | Path, logged: bool = True, remedy: str = "") -> str:
        """Run buildah; with `logged` its output goes to the log and "" comes back."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        return shell.run(
            self.build_command(driver, *words),
            log=self.log if logged else None,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            remedy=remedy,
        )

    def has_image(self, driver: str, reference: str) -> bool:
        """Whether buildah's storage knows the name."""
        listing = self.run(driver, "images", "--all", "--format", "{{.Name}}:{{.Tag}}", logged=False)
        return reference in listing.split()


def decide_driver(workshop: Workshop) -> str:
    """`overlay` where the machine can mount it for buildah, else `vfs`, and a sentence that says so."""
    try:
        workshop.run("overlay", "info", logged=False)
    except SandboxError as error:
        if shutil.which("buildah") is None:
            raise SandboxError("buildah is not installed; run: python3 -m sandbox packages") from error
        sys.stdout.write(
            "  buildah cannot use overlay mounts here; it copies every layer instead (vfs), which is slower\n"
        )
        return "vfs"
    return "overlay"


def gather_debian_sources() -> str:
    """The machine's own sources of Debian's packages, as one-line entries.

    Raises:
        SandboxError: it has none for Debian 12.
    """
    listing = shell.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)",
            "Created-By: Packages",
        ]
    )
    sources = parse_debian_sources(listing)
    if not sources:
        raise SandboxError(
            f"apt has no source of Debian's suite {CODENAME} (component main), which the base image is made from;"
            " add one to /etc/apt/sources.list.d and run apt-get update."
        )
    return sources


def apply_base(workshop: Workshop, driver: str) -> str:
    """Make the base image unless it is there; returns what was done, in words."""
    reference = decide_base_reference()
    if workshop.has_image(driver, reference):
        return "cached"
    archive = workshop.temporary / "base.tar"
    workshop.temporary.mkdir(parents=True, exist_ok=True)
    archive.unlink(missing_ok=True)
    env = {**os.environ, "TMPDIR": str(workshop.temporary)}
    shell.run([*_OWN_MOUNTS, *_BASE_RECIPE, CODENAME, archive, workshop.sources], log=workshop.log, env=env)
    container = workshop.run(driver, "from", "scratch", logged=False).split()[-1]
    try:
        workshop.run(driver, "add", "--quiet", container, archive, "/")
        workshop.run(driver, "config", "--cmd", "/bin/bash", container)
        workshop.run(driver, "commit", "--quiet", "--disable-compression", container, reference)
    finally:
        workshop.run(driver, "rm", container)
    archive.unlink()
    return "built"


def build_mounts(workshop: Workshop) -> list[str]:
    """What of the machine is lent to a build: its CA bundle, its Debian sources, uv's own settings where it has some."""
    lent = {
        CA_BUNDLE: CA_BUNDLE,
        workshop.sources: Path("/etc/apt/sources.list"),
        Path("/etc/uv/uv.toml"): Path("/etc/uv/uv.toml"),
    }
    return [f"--volume={source}:{target}:ro" for source, target in lent.items() if source.is_file()]


def apply_recipe(
    workshop: Workshop, driver: str, recipe: Recipe, image: Image, parent: str, source: Path
) -> None:
    """Build one image with buildah."""
    argument = "BASE_IMAGE" if recipe.parent is None else "TENSORFLOW_IMAGE"
    target = [f"--target={recipe.target}"] if recipe.target else []
    workshop.run(
        driver,
        "build",
        "--isolation=chroot",
        "--layers",
        "--format=oci",
        "--pull-never",
        f"--build-arg={argument}={parent}",
        *build_mounts(workshop),
        *target,
        f"--file={source / recipe.containerfile}",
        f"--tag={image.reference}",
        source / recipe.context,
    )


def apply_push(workshop: Workshop, driver: str, image: Image) -> None:
    """Put an image of buildah's storage into the OCI layout."""
    workshop.layout.parent.mkdir(parents=True, exist_ok=True)
    # Measured on the trainer image, two busy cores: gzip 42 s and 410 MB, zstd at its fastest 20 s and 382 MB.
    compression = ("--compression-format=zstd", "--compression-level=1")
    destination = f"oci:{workshop.layout}:{image.reference}"
    workshop.run(driver, "push", "--quiet", *compression, image.reference, destination)


def apply_clearing(workshop: Workshop, driver: str, references: Collection[str]) -> None:
    """Take our older names off buildah's storage, and empty its build cache once that has grown beyond bounds.

    What a build took from its cache stays for the next one; only a change of the requirements leaves gigabytes behind.
    """
    listing = workshop.run(driver, "images", "--format", "{{.Name}}:{{.Tag}}", logged=False).split()
    old = [name for name in listing if name.startswith(f"{PREFIX}/") and name not in references]
    if old:
        workshop.run(driver, "rmi", *old)
    size = shell.run(["du", "--summarize", "--block-size=1", workshop.cache / "buildah" / driver]).split()
    if int(size[0]) > STORAGE_BYTES:
        workshop.run(driver, "rmi", "--prune")


def push_image(cache: Path, image: Image, repository: str) -> str:
    """Push a built image to `repository`/NAME on a registry, as the user is logged in there; returns its name.

    Raises:
        SandboxError: the registry refused it.
    """
    workshop = Workshop(cache)
    destination = f"{repository}/{image.repository.rpartition('/')[2]}:{image.tag}"
    host = repository.partition("/")[0]
    workshop.run(
        decide_driver(workshop),
        "push",
        "--quiet",
        image.reference,
        f"docker://{destination}",
        remedy=f"see that {host} answers and that you may push there: buildah login {host}",
    )
    return destination


def apply_source(root: Path, source: Path) -> None:
    """Copy what images are made from, so that an edit during a build cannot enter an image named by the old hash."""
    shutil.rmtree(source, ignore_errors=True)
    for path in gather_input_files(root, {name for recipe in RECIPES for name in recipe.inputs}):
        target = source / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def find_need(cache: Path, repositories: Collection[str], root: Path = ROOT) -> Need | None:
    """The disk that building the images of `repositories` takes; None when all of them are kept."""
    kept = read_layout(Workshop(cache).layout)
    if all(i.reference in kept for i in decide_images(root) if i.repository in repositories):
        return None
    # What did not change comes from the storage of the build before.
    disk = REBUILD_DISK if (cache / "buildah").exists() else DISK
    return Need("building the images", cache, disk)


def apply_images(
    cache: Path, root: Path = ROOT, repositories: Collection[str] = SHIPPED
) -> tuple[Image, ...]:
    """Build and keep those images of `repositories` whose sources changed; returns them all, built or kept.

    Raises:
        SandboxError: a program is missing or failed; its last lines are in the error.
    """
    workshop = Workshop(cache)
    with hold_lock(cache / "images" / "lock"):
        source = cache / "images" / "source"
        apply_source(root, source)
        images = {image.repository: image for image in decide_images(source)}
        wanted = tuple(images[recipe.repository] for recipe in RECIPES if recipe.repository in repositories)
        kept = read_layout(workshop.layout)
        if all(image.reference in kept for image in wanted):
            return wanted
        if os.geteuid() != 0:
            raise SandboxError(
                "Building images here needs root's rights (mmdebstrap, buildah); run it again with sudo -E."
            )
        driver = decide_driver(workshop)
        workshop.sources.write_text(gather_debian_sources())
        base = decide_base_reference()
        apply_base(workshop, driver)
        for recipe in RECIPES:
            image = images[recipe.repository]
            if image not in wanted or image.reference in kept:
                continue
            parent = base
            if recipe.parent is not None:
                parent = images[recipe.parent].reference
                below = next(r for r in RECIPES if r.repository == recipe.parent)
                apply_recipe(workshop, driver, below, images[recipe.parent], base, source)
            apply_recipe(workshop, driver, recipe, image, parent, source)
            apply_push(workshop, driver, image)
        apply_pruning(workshop.layout, {image.reference for image in images.values()})
        apply_clearing(workshop, driver, {base, *(image.reference for image in images.values())})
    return wanted


# --- The OCI layout (https://github.com/opencontainers/image-spec/blob/v1.0.2/image-layout.md) --------------------

_REF_NAME = "org.opencontainers.image.ref.name"


def read_layout(layout: Path) -> dict[str, dict[str, Any]]:
    """Manifest descriptors of an OCI layout by image name; empty when there is no layout."""
    try:
        index = json.loads((layout / "index.json").read_text())
    except FileNotFoundError:
        return {}
    return {
        descriptor["annotations"][_REF_NAME]: descriptor
        for descriptor in index["manifests"]
        if _REF_NAME in descriptor.get("annotations", {})
    }


def _blob(layout: Path, digest: str) -> Path:
    algorithm, _, value = digest.partition(":")
    return layout / "blobs" / algorithm / value


def gather_blobs(layout: Path, descriptor: Mapping[str, Any]) -> list[str]:
    """Digests of an image's manifest, configuration and layers, in that order."""
    digest = str(descriptor["digest"])
    manifest = json.loads(_blob(layout, digest).read_text())
    return [
        digest,
        str(manifest["config"]["digest"]),
        *(str(layer["digest"]) for layer in manifest["layers"]),
    ]


def apply_pruning(layout: Path, references: Collection[str]) -> None:
    """Drop every image but those named, and the blobs none of them needs."""
    kept = {name: d for name, d in read_layout(layout).items() if name in references}
    index = {"schemaVersion": 2, "manifests": list(kept.values())}
    fresh = layout / "index.json.new"
    fresh.write_text(json.dumps(index))
    fresh.replace(layout / "index.json")
    needed = {
        _blob(layout, digest) for descriptor in kept.values() for digest in gather_blobs(layout, descriptor)
    }
    for path in (layout / "blobs").glob("*/*"):
        if path not in needed:
            path.unlink()


def build_archive(layout: Path, images: Sequence[Image], present: Collection[str], destination: Path) -> int:
    """Write an OCI archive of `images` under all their names, without blobs in `present`; returns its size in bytes.

    containerd takes a layer that it has already from its own store, so what it has need not be sent again.

    Raises:
        SandboxError: an image is not in the layout.
    """
    known = read_layout(layout)
    manifests: list[dict[str, Any]] = []
    blobs: dict[str, None] = {}
    for image in images:
        if image.reference not in known:
            raise SandboxError(f"image {image.reference} was not built; run: python3 -m sandbox images")
        descriptor = known[image.reference]
        for name in image.references:
            # containerd 1.6 takes the full name from its own annotation and only a tag from OCI's.
            names = {_REF_NAME: name.rpartition(":")[2], "io.containerd.image.name": name}
            manifests.append({**descriptor, "annotations": names})
        manifest, *rest = gather_blobs(layout, descriptor)
        # The manifest always goes along: it is what the import begins with.
        blobs.update(dict.fromkeys([manifest, *(digest for digest in rest if digest not in present)]))
    with tarfile.open(destination, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (
            ("oci-layout", {"imageLayoutVersion": "1.0.0"}),
            ("index.json", {"schemaVersion": 2, "manifests": manifests}),
        ):
            text = json.dumps(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
        for digest in blobs:
            path = _blob(layout, digest)
            archive.add(path, f"blobs/{digest.replace(':', '/')}")
    return destination.stat().st_size


# --- Into the sandbox --------------------------------------------------------------------------------------------


def parse_image_listing(listing: str) -> dict[str, str]:
    """Digests by name in the output of `ctr images ls`."""
    rows = [line.split() for line in listing.splitlines()[1:]]
    return {row[0]: row[2] for row in rows if len(row) > 2 and row[2].startswith("sha256:")}


def import_images(cache: Path, images: Sequence[Image], sandbox: Sandbox) -> str:
    """Bring images into every node's containerd that lacks them; returns what was done, in words.

    Raises:
        SandboxError: no sandbox runs, an image was not built, or containerd refused it.
    """
    workshop = Workshop(cache)
    nodes = sandbox.started_nodes()
    if not nodes:
        raise SandboxError(
            f"No sandbox runs in {sandbox.directory}, so no image can be imported; run: make sandbox-up"
        )
    done: list[str] = []
    with hold_lock(cache / "images" / "lock"):
        known = read_layout(workshop.layout)
        for one in nodes:
            there = parse_image_listing(node.run_ctr(one, "images", "ls"))
            lacking = [
                image
                for image in images
                if any(
                    there.get(name) != known.get(image.reference, {}).get("digest")
                    for name in image.references
                )
            ]
            if not lacking:
                continue
            present = set(node.run_ctr(one, "content", "ls", "--quiet").split())
            archive = cache / "images" / f"{one.name}.tar"
            try:
                size = build_archive(workshop.layout, lacking, present, archive)
                node.import_into(one, archive)
            finally:
                archive.unlink(missing_ok=True)
            done.append(f"{size / 1e6:.0f} MB into {one.name}")
    return ", ".join(done) or "there already"


def main(argv: Sequence[str]) -> int:
    """`python3 -m sandbox images`: build what changed and say under which names it is known."""
    parser = argparse.ArgumentParser(
        prog="python3 -m sandbox images", description="Build the images that changed and print their names."
    )
    parser.add_argument(
        "--import", dest="importing", action="store_true", help="and import them into the sandbox"
    )
    arguments = parser.parse_args(argv)
    cache = read_cache_directory()
    images: list[Image] = []
    steps = [build_step(cache, images, ALL)]
    if arguments.importing:
        steps.append(
            Step(
                "import",
                "importing the images into the sandbox",
                30.0,
                lambda: import_images(cache, images, Sandbox.read()),
                ("images",),
            )
        )
    run_steps(steps)
    for image in images:
        sys.stdout.write("\n".join(image.references) + "\n")
    return 0


def build_step(
    cache: Path, into: list[Image], repositories: Collection[str] = SHIPPED, needs: tuple[str, ...] = ()
) -> Step:
    """The step that builds the images and appends them to `into`."""

    def run() -> str:
        into.extend(apply_images(cache, repositories=repositories))
        return ", ".join(image.reference.removeprefix(f"{PREFIX}/") for image in into)

    return Step("images", "building the images with buildah", 165.0, run, needs)
