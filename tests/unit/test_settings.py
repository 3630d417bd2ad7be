"""A setting is one field: its flag, its default, its bounds and its help follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from greentrain.settings import ProgramSettings, flag, namespaced, number, parse, port, seconds, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ProgramSettings):
    """One of each form."""

    name: str = field(metadata=flag("whose", variable="NAME"))
    verb: str = field(default="run", metadata=flag("what", choices=("run", "stop"), form="command"))
    wait_time: float = field(default=2.0, metadata=flag("how long (default %(default)s)", seconds(0.5, 9)))
    share: float = field(default=0.5, metadata=flag("which part", number(0, 1)))
    count: int = field(default=3, metadata=flag("how many", whole(1, 4)))
    http_port: int = field(default=80, metadata=flag("where", port))
    object: tuple[str, str] | None = field(default=None, metadata=flag("which", namespaced))
    names: tuple[str, ...] = field(
        default=("a",), metadata=flag("which ones", name="--one", form="repeated", metavar="NAME")
    )
    dry: bool = field(default=False, metadata=flag("change nothing", form="switch"))
    hidden: int = 7


def read(*arguments: str, environment: dict[str, str] | None = None) -> Settings:
    return parse(
        Settings,
        arguments,
        program="prog",
        description="Does it.",
        environment=environment,
        find_problem=lambda s: "stop needs --dry" if s.verb == "stop" and not s.dry else "",
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "changed"),
    [
        ([], {}, {}),
        ([], {"NAME": "there"}, {"name": "there"}),
        (["--name=here"], {"NAME": "there"}, {"name": "here"}),
        (["--wait-time=0.5"], {}, {"wait_time": 0.5}),
        (["--share", "1"], {}, {"share": 1.0}),
        (["--count=4"], {}, {"count": 4}),
        (["--http-port=0"], {}, {"http_port": 0}),
        (["--object=ns/name"], {}, {"object": ("ns", "name")}),
        (["--one=b", "--one=c", "--one=b"], {}, {"names": ("a", "b", "c")}),
        (["stop", "--dry"], {}, {"verb": "stop", "dry": True}),
        (["--log-level=DEBUG", "--log-format=json"], {}, {"log_level": "DEBUG", "log_format": "json"}),
        (["--kubeconfig=/k", "--context=c"], {}, {"kubeconfig": "/k", "context": "c"}),
    ],
)
def test_each_flag_changes_its_field_and_no_other(
    arguments: list[str], environment: dict[str, str], changed: dict[str, object]
) -> None:
    expected = replace(Settings(name=""), **changed)  # type: ignore[arg-type]
    assert read(*arguments, environment=environment) == expected


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--wait-time=0.4", "--wait-time: 0.4 is not between 0.5 and 9 seconds"),
        ("--wait-time=nan", "--wait-time: nan is not between 0.5 and 9 seconds"),
        ("--wait-time=inf", "--wait-time: inf is not between 0.5 and 9 seconds"),
        ("--wait-time=soon", "--wait-time: soon is not between 0.5 and 9 seconds"),
        ("--share=1.1", "--share: 1.1 is not between 0 and 1"),
        ("--count=5", "--count: 5 is not between 1 and 4"),
        ("--count=1.5", "--count: 1.5 is not between 1 and 4"),
        ("--http-port=65536", "--http-port: 65536 is not between 0 and 65535"),
        ("--object=name", "--object: name is not NAMESPACE/NAME"),
        ("--object=a/b/c", "--object: a/b/c is not NAMESPACE/NAME"),
        ("walk", "invalid choice: 'walk'"),
        ("--hidden=8", "unrecognized arguments: --hidden=8"),
        ("stop", "stop needs --dry"),
    ],
)
def test_a_wrong_value_is_named_with_its_flag_and_what_would_be_right(
    argument: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read(argument)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_help_of_a_flag_names_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert ended.value.code == 0
    assert "how long (default 2.0)" in capsys.readouterr().out
