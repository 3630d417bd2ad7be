"""Programs are built from exactly what a go.mod and a go.sum pin, once, and a failure says what could not be had.

The builds are real: a module without requirements needs no module proxy, and one that asks for what no proxy has is refused.
"""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox import golang
from sandbox.golang import GoModule
from sandbox.shell import SandboxError

GO_MOD = """\
module kubernetes

go 1.26.0

tool (
\tk8s.io/kubernetes/cmd/kubectl
\tk8s.io/kubernetes/cmd/kubelet
)

tool example.org/alone/cmd/one

require k8s.io/kubernetes v1.37.2

require (
\tk8s.io/kubernetes-csi v0.1.0
\texample.org/alone v0.3.0-rc.1 // indirect
)
"""


def test_a_go_mod_says_version_least_go_and_programs() -> None:
    assert golang.parse_required(GO_MOD, "k8s.io/kubernetes") == "1.37.2"
    assert golang.parse_required(GO_MOD, "example.org/alone") == "0.3.0-rc.1"
    assert golang.parse_go_line(GO_MOD) == (1, 26, 0)
    assert golang.parse_tools(GO_MOD) == [
        "k8s.io/kubernetes/cmd/kubectl",
        "k8s.io/kubernetes/cmd/kubelet",
        "example.org/alone/cmd/one",
    ]


@pytest.mark.parametrize("text", ["", "module x\n\nrequire k8s.io/kubernetes-csi v0.1.0\n"])
def test_a_go_mod_that_lacks_them_is_refused(text: str) -> None:
    with pytest.raises(SandboxError, match=r"requires no k8s\.io/kubernetes"):
        golang.parse_required(text, "k8s.io/kubernetes")
    with pytest.raises(SandboxError, match="go VERSION"):
        golang.parse_go_line(text)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.26.8", (1, 26, 8)),
        ("1.27rc2", (1, 27, 0)),
        ("1.26", (1, 26, 0)),
        ("devel", (0, 0, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_a_go_version_is_read_as_numbers(text: str, version: tuple[int, ...]) -> None:
    assert golang.parse_version(text) == version


@pytest.mark.parametrize(
    ("output", "refused"),
    [
        ("go: downloading k8s.io/api v0.37.2\n", []),
        (
            'go: k8s.io/api@v0.37.2: Get "https://p.example/x": dial tcp: lookup p.example: no such host\n',
            ["k8s.io/api@v0.37.2"],
        ),
        (
            "a.go:3:2: github.com/a/b@v1.0.0+incompatible: reading https://p/x: 404 Not Found\n" * 2,
            ["github.com/a/b@v1.0.0+incompatible"],
        ),
    ],
)
def test_the_module_that_could_not_be_had_is_named(output: str, refused: list[str]) -> None:
    assert golang.parse_refused(output) == refused


def _write_go(folder: Path, version: str) -> Path:
    """A `go` that only says its version."""
    folder.mkdir()
    (folder / "go").write_text(f"#!/bin/sh\necho {version}\n")
    (folder / "go").chmod(0o755)
    return folder / "go"


@pytest.mark.parametrize(
    ("version", "serves"),
    [
        ("go1.26.0", True),
        ("go1.27.3", True),
        ("go2.0.0", True),
        ("go1.25.9", False),
        ("go1.19.8", False),
        ("", False),
    ],
)
def test_a_go_on_the_path_serves_when_it_is_new_enough(tmp_path: Path, version: str, serves: bool) -> None:
    go = _write_go(tmp_path / "bin", version)
    assert golang.find_go((1, 26, 0), {"PATH": str(go.parent)}) == (go if serves else None)


def test_without_a_go_on_the_path_there_is_none() -> None:
    assert golang.find_go((1, 26, 0), {"PATH": "/nowhere"}) is None


SOURCE = """\
package main

import "os"

var version = "none"

func main() { os.Stdout.WriteString("v" + version) }
"""


@pytest.fixture
def hello(tmp_path: Path) -> GoModule:
    """A module of one program that requires itself at a version, as far as its text goes, and nothing of a proxy."""
    folder = tmp_path / "hello"
    (folder / "cmd" / "greet").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "cmd" / "greet" / "main.go").write_text(SOURCE)
    (folder / "lib" / "go.mod").write_text("module example.org/lib\n\ngo 1.21\n")
    (folder / "go.mod").write_text(
        "module example.org/hello\n\ngo 1.21\n\ntool example.org/hello/cmd/greet\n\n"
        "require example.org/lib v0.2.1\n\nreplace example.org/lib => ./lib\n"
    )
    (folder / "go.sum").write_text("")
    return GoModule(
        "Hello", "example.org/lib", folder, ("main.version={version}/{major}/{minor}",), 1, 10, 10
    )


@pytest.fixture(scope="session")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which Go reaches no proxy and keeps nothing outside the test's folders."""
    home = tmp_path_factory.mktemp("home")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "GOMODCACHE": str(home / "modules"),
        # The discard port of loopback: every request is refused at once.
        "GOPROXY": "http://127.0.0.1:9",
    }


needs_go = pytest.mark.skipif(golang.find_go((1, 21, 0)) is None, reason="no Go on PATH")


@needs_go
def test_two_builds_at_once_are_one_and_leave_the_stamped_programs_alone(
    hello: GoModule, environ: dict[str, str], tmp_path: Path
) -> None:
    cache, log = tmp_path / "cache", tmp_path / "log"
    program = hello.decide_directory(cache) / "greet"
    for folder in (cache / "hello" / "build" / "programs", program.parent):
        folder.mkdir(parents=True)
        (folder / "half").write_text("what an interrupted build left")

    def build(_: int) -> str:
        return golang.apply_programs(hello, cache, log, environ=environ)

    with ThreadPoolExecutor(2) as pool:
        said = sorted(pool.map(build, range(2)))
    assert said == [f"built 1 programs into {program.parent}", f"there in {program.parent}"]
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "v0.2.1/0/2"
    assert {path.name for path in (cache / "hello").iterdir()} == {"lock", program.parent.name}
    assert [path.name for path in program.parent.iterdir()] == ["greet"]


@pytest.mark.parametrize("changed", ["go.mod", "go.sum"])
def test_a_change_of_either_file_is_another_build(hello: GoModule, tmp_path: Path, changed: str) -> None:
    before = hello.decide_directory(tmp_path)
    with (hello.folder / changed).open("a") as stream:
        stream.write("\n// changed\n")
    assert hello.decide_directory(tmp_path) != before
    assert replace(hello, stamps=()).decide_directory(tmp_path) != before


@needs_go
def test_a_module_that_cannot_be_had_is_named_with_the_way_out(
    hello: GoModule, environ: dict[str, str], tmp_path: Path
) -> None:
    text = (hello.folder / "go.mod").read_text()
    (hello.folder / "go.mod").write_text(f"{text}\nrequire example.org/missing v1.2.3\n")
    main = hello.folder / "cmd" / "greet" / "main.go"
    main.write_text(SOURCE.replace('import "os"', 'import "os"\nimport _ "example.org/missing"'))
    (hello.folder / "go.sum").write_text(
        "example.org/missing v1.2.3 h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
        "example.org/missing v1.2.3/go.mod h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
    )
    cache = tmp_path / "cache"
    with pytest.raises(SandboxError) as caught:
        golang.apply_programs(hello, cache, tmp_path / "log", way_out="; or look elsewhere", environ=environ)
    text = str(caught.value)
    assert (
        "Hello 0.2.1 is built from Go modules, and example.org/missing@v1.2.3 could not be had from GOPROXY=http://127.0.0.1:9."
        in text
    )
    assert "GOPROXY; or look elsewhere" in text
    assert [path.name for path in (cache / "hello").iterdir()] == ["lock"]


def test_too_little_disk_is_said_before_anything_is_built(hello: GoModule, tmp_path: Path) -> None:
    greedy = replace(hello, disk=10**18)
    with pytest.raises(
        SandboxError, match=r"GB free, and 1000000000\.0 GB are needed \(building Hello"
    ) as caught:
        golang.apply_programs(greedy, tmp_path / "cache", tmp_path / "log", environ={})
    assert "GREENTRAIN_CACHE" in str(caught.value)
    assert not (tmp_path / "log").exists()
