"""The operator's command line."""

from __future__ import annotations

import pytest

from greentrain.api.resources import SHIPPED, GpuResources
from greentrain.controller.settings import Settings, parse_settings


def test_without_arguments_the_defaults_hold() -> None:
    assert parse_settings([]) == Settings()


def test_namespaces_may_be_repeated() -> None:
    assert parse_settings(["--namespace=a", "--namespace", "b", "--namespace=a"]).namespaces == ("a", "b")


def test_what_fails_liveness_can_be_set() -> None:
    settings = parse_settings(["--stale-after=60", "--watch-inactivity=90", "--pass-limit=120"])
    assert (settings.stale_after, settings.watch_inactivity, settings.pass_limit) == (60, 90, 120)


def test_the_lease_that_is_renewed_can_be_named() -> None:
    assert parse_settings([]).lease is None
    assert parse_settings(["--lease=gt/operator"]).lease == ("gt", "operator")


def test_the_resources_that_are_gpus_can_be_named() -> None:
    assert parse_settings([]).gpu_resources == SHIPPED
    named = parse_settings(["--gpu-resources=amd.com/gpu,nvidia.com/*"]).gpu_resources
    assert named == GpuResources(("amd.com/gpu", "nvidia.com/*"))


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        *(
            (f"--lease={name}", f"{name} is not NAMESPACE/NAME")
            for name in ("operator", "gt/", "/o", "a/b/c")
        ),
        ("--progress-interval=0", "0 is not between 0.1 and 86400 seconds"),
        ("--gpu-resources=", "'' is no name of a GPU resource"),
        ("--gpu-resources=nvidia.com/gpu,*", "'*' is no name of a GPU resource"),
        ("--workers=0", "0 is not between 1 and 256"),
        ("--stale-after=0", "0 is not between 0.1 and 86400 seconds"),
        ("--log-format=xml", "invalid choice: 'xml'"),
        ("--log-level=LOUD", "invalid choice: 'LOUD'"),
        ("--progres-interval=5", "unrecognized arguments"),
    ],
)
def test_a_wrong_argument_is_named(argument: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_settings([argument])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
