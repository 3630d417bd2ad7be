"""The package installer comes into an empty cache once, whoever asks for it first."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sandbox import shell
from sandbox.uv import apply_uv

INFO = "uv-1.dist-info"


def write_wheel(folder: Path) -> Path:
    """A package of one program, as uv's own wheel is; returns a requirement file that names it by hash."""
    wheel = folder / "uv-1-py3-none-any.whl"
    files = {
        "uv-1.data/scripts/uv": "#!/bin/sh\necho as pinned\n",
        f"{INFO}/METADATA": "Metadata-Version: 2.1\nName: uv\nVersion: 1\n",
        f"{INFO}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        record = ""
        for name, text in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(text)}\n"
        archive.writestr(f"{INFO}/RECORD", record + f"{INFO}/RECORD,,\n")
    requirements = folder / "uv.txt"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    requirements.write_text(f"uv @ {wheel.as_uri()} --hash=sha256:{digest}\n")
    return requirements


def test_the_first_two_who_need_it_have_it_installed_once(tmp_path: Path) -> None:
    """As a machine without Go does: the virtual environment and Go's own installation begin side by side."""
    cache = tmp_path / "cache"
    left = cache / "uv" / "partial" / "bin"
    left.mkdir(parents=True)  # by a run that was interrupted
    requirements = write_wheel(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(apply_uv, cache, tmp_path / "log", requirements) for _ in range(3)]
        programs = {answer.result() for answer in asked}
    (program,) = programs
    assert shell.run([program]).strip() == "as pinned"
    assert {path.name for path in (cache / "uv").iterdir()} == {"lock", program.parent.parent.name}
