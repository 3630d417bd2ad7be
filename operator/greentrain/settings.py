"""How a program is set up by its command line: each setting is one field, with its flag, default, bounds and help in one place.

A program's settings are a frozen dataclass. A field is set by a flag where its metadata is made by `flag`; `parse` builds the
command line of all of them, so that no setting can be read and then forgotten. A wrong command line ends the program with exit
code 2 and a sentence that names the flag, the value and what would be right.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from greentrain.api.resources import SHIPPED, GpuResources, parse_gpu_resources

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    S = TypeVar("S", bound=DataclassInstance)

LogFormat = Literal["json", "text"]

Reader = Callable[[str], Any]
"""The value of a text; argparse.ArgumentTypeError, with what would be right, for one that is none."""

_KEY = "flag"


@dataclass(frozen=True, slots=True)
class _Flag:
    help: str
    read: Reader
    name: str
    metavar: str | None
    choices: tuple[str, ...] | None
    variable: str
    form: Literal["one", "repeated", "switch", "command"]

    def add_to(self, parser: argparse.ArgumentParser, of: Field[Any], environment: Mapping[str, str]) -> None:
        """Add it to a command line."""
        default = _find_default(of)
        if self.variable:
            default = environment.get(self.variable, default)
        name = self.name or "--" + of.name.replace("_", "-")
        match self.form:
            case "switch":
                parser.add_argument(name, dest=of.name, action="store_true", help=self.help)
            case "command":
                parser.add_argument(of.name, nargs="?", choices=self.choices, default=default, help=self.help)
            case "repeated":
                parser.add_argument(
                    name,
                    dest=of.name,
                    action="append",
                    type=self.read,
                    default=list(default),
                    metavar=self.metavar,
                    help=self.help,
                )
            case "one":
                parser.add_argument(
                    name,
                    dest=of.name,
                    type=self.read,
                    choices=self.choices,
                    default=default,
                    metavar=self.metavar,
                    help=self.help,
                )

    def take(self, value: Any) -> Any:
        """A setting's value from what argparse has read; of what is repeated each value once."""
        return tuple(dict.fromkeys(value)) if self.form == "repeated" else value


def _find_default(of: Field[Any]) -> Any:
    if of.default_factory is not MISSING:
        return of.default_factory()
    return "" if of.default is MISSING else of.default


def flag(
    text: str,
    read: Reader = str,
    *,
    name: str = "",
    metavar: str | None = None,
    choices: tuple[str, ...] | None = None,
    variable: str = "",
    form: Literal["one", "repeated", "switch", "command"] = "one",
) -> dict[str, Any]:
    """Metadata of a field that a flag sets; the flag is called as the field where it has no `name` of its own.

    `text` is its help; in it `%(default)s` stands for the default. `variable` is an environment variable that is read where
    the flag is not given; a field without a default is empty where neither is. A `repeated` flag makes a tuple, each value
    once; a `switch` has no value and is off by default; a `command` is a word without a flag.
    """
    return {_KEY: _Flag(text, read, name, metavar, choices, variable, form)}


def parse(
    kind: type[S],
    arguments: Sequence[str],
    *,
    program: str,
    description: str,
    environment: Mapping[str, str] | None = None,
    find_problem: Callable[[S], str] = lambda _: "",
) -> S:
    """Settings from a command line; exits with 2 and a sentence on a wrong one.

    `find_problem` says what is wrong with settings each of which alone may be right; empty where nothing is.
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    flags: dict[str, _Flag] = {f.name: f.metadata[_KEY] for f in fields(kind) if _KEY in f.metadata}
    for of in fields(kind):
        if of.name in flags:
            flags[of.name].add_to(parser, of, environment or {})
    found = vars(parser.parse_args(arguments))
    settings = kind(**{name: flags[name].take(value) for name, value in found.items()})
    problem = find_problem(settings)
    if problem:
        parser.error(problem)
    return settings


def number(least: float, most: float, unit: str = "") -> Reader:
    """Reads a number within bounds; infinities and NaN are within none."""

    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = float(text)
            if least <= value <= most:
                return value
        raise argparse.ArgumentTypeError(f"{text} is not between {least:g} and {most:g}{unit}")

    return read


def seconds(least: float, most: float) -> Reader:
    """Reads a time in seconds within bounds."""
    return number(least, most, " seconds")


def whole(least: int, most: int) -> Reader:
    """Reads a whole number within bounds."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            value = int(text)
            if least <= value <= most:
                return value
        raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")

    return read


port = whole(0, 65535)


def gpu_resources(text: str) -> GpuResources:
    """Reads the names of the resources that are GPUs."""
    try:
        return parse_gpu_resources(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def namespaced(text: str) -> tuple[str, str]:
    """Reads the namespace and the name of an object."""
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise argparse.ArgumentTypeError(f"{text} is not NAMESPACE/NAME")
    return namespace, name


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSettings:
    """What operator and agent are both set up with."""

    log_level: str = field(
        default="INFO",
        metadata=flag(
            "least level of the lines that are written (default %(default)s)",
            choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        ),
    )
    log_format: LogFormat | None = field(
        default=None, metadata=flag("default: text at a terminal, else json", choices=("json", "text"))
    )
    gpu_resources: GpuResources = field(
        default=SHIPPED,
        metadata=flag(
            "names of the container resources that are GPUs, separated by commas; a * at the end of a name stands for any rest. "
            "Operator and agents must have the same (default %(default)s)",
            gpu_resources,
            metavar="NAMES",
        ),
    )
    kubeconfig: str | None = field(default=None, metadata=flag("default: the pod's service account"))
    context: str | None = field(default=None, metadata=flag("context in that kubeconfig"))
