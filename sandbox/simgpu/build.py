"""Compiles the libraries of the simulated cards, once per version of their sources and of the compiler.

`libnvidia-ml.so.1` is what NVML programs load; `libsimgpu.so` holds the same cards' controls and no NVML function;
`bin/nvidia-smi` is a small one, whose presence some tools take for a driver's. All need glibc alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sandbox import shell
from sandbox.cache import read_cache_directory

SOURCES = Path(__file__).with_name("c")

FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
NVML = "libnvidia-ml.so.1"
CONTROL = "libsimgpu.so"
SMI = "bin/nvidia-smi"
_SHARED = ("-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,defs")
_STATE = ("state.c", "physics.c")
PIECES: dict[str, tuple[str, ...]] = {
    NVML: (*_SHARED, f"-Wl,-soname,{NVML}", "nvml.c", "call.c", *_STATE),
    CONTROL: (*_SHARED, f"-Wl,-soname,{CONTROL}", "control.c", *_STATE),
    # Linked last, against the library just built; it finds it again in the folder above its own.
    SMI: ("nvidia-smi.c", "-L.", f"-l:{NVML}", "-Wl,-rpath,$ORIGIN/.."),
}


@dataclass(frozen=True)
class Libraries:
    """Where the built pieces lie; all exist."""

    folder: Path
    """What LD_LIBRARY_PATH must name for NVML programs."""

    @property
    def nvml(self) -> Path:
        """What NVML programs load, by preloading it or from `folder`."""
        return self.folder / NVML

    @property
    def control(self) -> Path:
        """What `sandbox.simgpu.cards` loads."""
        return self.folder / CONTROL

    def preload(self) -> None:
        """Load the NVML library into this process, where pynvml then finds it by its SONAME."""
        ctypes.CDLL(str(self.nvml), mode=ctypes.RTLD_GLOBAL)

    @property
    def programs(self) -> Path:
        """The folder of nvidia-smi, for PATH."""
        return (self.folder / SMI).parent


def build_digest(compiler: str) -> str:
    """The key of a build: its sources, flags and compiler."""
    digest = hashlib.sha256(f"{compiler}\0{FLAGS}\0{PIECES}".encode())
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:12]


def apply_libraries_to(folder: Path) -> Libraries:
    """Compile everything into a folder, replacing each piece whole; programs that use an older one keep it.

    Raises:
        SandboxError: gcc or libc's headers are missing, or the sources do not compile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        work = Path(partial)
        for source in SOURCES.glob("*.[ch]"):
            shutil.copy(source, work)
        for piece, words in PIECES.items():
            (work / piece).parent.mkdir(exist_ok=True)
            shell.run(["gcc", *FLAGS, "-o", piece, *words], cwd=work, remedy="apt-get install gcc libc6-dev")
        for piece in PIECES:
            (folder / piece).parent.mkdir(exist_ok=True)
            (work / piece).rename(folder / piece)
    return Libraries(folder)


def apply_libraries(cache: Path | None = None) -> Libraries:
    """Everything in the cache (`read_cache_directory()` when none is given), compiled when it is not there.

    Raises:
        SandboxError: as `apply_libraries_to`.
    """
    compiler = shell.run(["gcc", "--version"], remedy="apt-get install gcc libc6-dev").splitlines()[0]
    folder = (read_cache_directory() if cache is None else cache) / "simgpu" / build_digest(compiler)
    if all((folder / piece).exists() for piece in PIECES):
        return Libraries(folder)
    return apply_libraries_to(folder)
