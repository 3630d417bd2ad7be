"""A node's configuration says what the machine allows and shares nothing with another node."""

from __future__ import annotations

import io
import json
import tarfile
import tomllib
from pathlib import Path

import pytest

from sandbox import archive, pause
from sandbox.cgroups import CgroupMode, Driver
from sandbox.network import build_cni_configuration, find_overlaps
from sandbox.node import (
    CAP_SYS_RESOURCE,
    build_containerd_configuration,
    build_kubelet_configuration,
    build_mount_script,
    build_proxy_configuration,
    has_capability,
    import_image,
)
from sandbox.packages import parse_installed
from sandbox.shell import SandboxError
from sandbox.state import Node, Sandbox
from sandbox.volume import build_volume

SANDBOX = Sandbox(Path("/s p"))
FIRST, SECOND = SANDBOX.nodes(2)
CGROUPFS = CgroupMode(1, Driver.CGROUPFS, (Path("/sys/fs/cgroup/cpu"),))
SYSTEMD = CgroupMode(2, Driver.SYSTEMD, (Path("/sys/fs/cgroup"),))


@pytest.mark.parametrize(
    ("status", "there"),
    [
        ("Name:\tx\nCapEff:\t000001ffffffffff\n", True),
        ("CapEff:\t000001fffeffffff\n", False),
        ("CapEff:\t0000000001000000\n", True),
        ("CapPrm:\t000001ffffffffff\n", False),
        ("", False),
    ],
)
def test_the_oom_score_is_restricted_only_where_the_capability_lacks(status: str, there: bool) -> None:
    assert has_capability(status, CAP_SYS_RESOURCE) is there


@pytest.mark.parametrize("restrict", [True, False])
@pytest.mark.parametrize(("driver", "systemd"), [(Driver.CGROUPFS, False), (Driver.SYSTEMD, True)])
def test_containerd_is_told_driver_image_and_places(driver: Driver, systemd: bool, restrict: bool) -> None:
    text = build_containerd_configuration(FIRST, driver=driver, restrict_oom_score=restrict)
    parsed = tomllib.loads(text)
    cri = parsed["plugins"]["io.containerd.grpc.v1.cri"]
    assert parsed["root"] == "/s p/node1/containerd"
    assert cri["sandbox_image"] == pause.IMAGE
    assert cri["restrict_oom_score_adj"] is restrict
    assert cri["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is systemd


@pytest.mark.parametrize(
    ("mode", "driver", "root"),
    [(CGROUPFS, "cgroupfs", "/greentrain-sandbox/node1"), (SYSTEMD, "systemd", "/greentrain/node1")],
)
def test_kubelet_uses_the_machines_cgroup_driver(mode: CgroupMode, driver: str, root: str) -> None:
    configuration = build_kubelet_configuration(SANDBOX, FIRST, mode)
    assert (configuration["cgroupDriver"], configuration["cgroupRoot"]) == (driver, root)
    assert json.loads(json.dumps(configuration)) == configuration


def test_two_nodes_share_no_address_cgroup_or_certificate() -> None:
    first, second = (build_kubelet_configuration(SANDBOX, node, CGROUPFS) for node in (FIRST, SECOND))
    for field in ("address", "cgroupRoot", "tlsCertFile", "resolvConf"):
        assert first[field] != second[field], field
    assert FIRST.network_namespace != SECOND.network_namespace


def test_each_kube_proxy_speaks_for_its_own_node() -> None:
    proxies = [build_proxy_configuration(SANDBOX, node) for node in (FIRST, SECOND)]
    assert [proxy["hostnameOverride"] for proxy in proxies] == ["node1", "node2"]
    assert [proxy["bindAddress"] for proxy in proxies] == [FIRST.address, SECOND.address]


def test_a_node_gives_its_pods_addresses_of_its_own_range() -> None:
    plugins = [json.loads(build_cni_configuration(node))["plugins"][0] for node in (FIRST, SECOND)]
    ranges = [plugin["ipam"]["ranges"][0][0] for plugin in plugins]
    assert [(one["subnet"], one["gateway"], one["rangeStart"], one["rangeEnd"]) for one in ranges] == [
        ("198.18.1.0/24", "198.18.1.1", "198.18.1.2", "198.18.1.254"),
        ("198.18.2.0/24", "198.18.2.1", "198.18.2.2", "198.18.2.254"),
    ]


def test_a_nodes_folders_lie_over_the_machines_even_with_blanks_in_their_names() -> None:
    lines = build_mount_script(FIRST, ["containerd", "--config", "/s p/c.toml"]).splitlines()
    assert "mount --bind '/s p/node1/kubelet' /var/lib/kubelet" in lines
    assert "mount --bind '/s p/node1/run' /run/containerd" in lines
    assert lines[-1] == "exec containerd --config '/s p/c.toml'"


@pytest.mark.parametrize(
    ("routes", "overlaps"),
    [
        ([{"dst": "default", "dev": "eth0"}, {"dst": "192.0.2.0/24", "dev": "eth0"}], []),
        ([{"dst": "198.18.0.0/16", "dev": "gtsandbox0"}], []),
        ([{"dst": "198.18.7.0/24", "dev": "tun0"}], ["198.18.7.0/24 dev tun0"]),
        ([{"dst": "198.18.0.1", "dev": "tun0"}], ["198.18.0.1 dev tun0"]),
        ([{"dst": "198.19.3.0/24", "dev": "tun0"}], ["198.19.3.0/24 dev tun0"]),
        ([{"dst": "198.0.0.0/8"}], ["198.0.0.0/8 dev ?"]),
        ([], []),
    ],
)
def test_a_route_of_the_machine_into_our_ranges_is_noticed(
    routes: list[dict[str, str]], overlaps: list[str]
) -> None:
    assert find_overlaps(json.dumps(routes)) == overlaps


def test_the_pause_archive_is_a_whole_oci_layout_and_the_same_every_time() -> None:
    layer = archive.build_tar({"pause": (b"\x7fELF", 0o755)})
    built, again = (
        archive.build_image_archive(
            pause.IMAGE, layer, architecture="amd64", entrypoint=["/pause"], user=65535
        )
        for _ in range(2)
    )
    assert built == again
    with tarfile.open(fileobj=io.BytesIO(built)) as opened:
        files = {member.name: member for member in opened.getmembers()}

        def read(name: str) -> bytes:
            stream = opened.extractfile(files[name])
            assert stream is not None
            return stream.read()

        index = json.loads(read("index.json"))
        (entry,) = index["manifests"]
        assert entry["annotations"]["io.containerd.image.name"] == pause.IMAGE
        manifest = json.loads(read("blobs/sha256/" + entry["digest"].removeprefix("sha256:")))
        configuration = json.loads(
            read("blobs/sha256/" + manifest["config"]["digest"].removeprefix("sha256:"))
        )
        assert configuration["config"] == {"Entrypoint": ["/pause"], "User": "65535:65535"}
        assert configuration["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
        assert read("blobs/sha256/" + manifest["layers"][0]["digest"].removeprefix("sha256:")) == layer


def test_an_image_cannot_be_imported_where_no_node_runs(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=r"No sandbox runs in .*; run: make sandbox-up"):
        import_image(tmp_path / "image.tar", Sandbox(tmp_path))


@pytest.mark.parametrize(
    ("listing", "names"),
    [
        ("runc ii \ncontainerd ii \n", {"runc", "containerd"}),
        ("runc un \ncontainerd rc \netcd-server iU \n", set()),
        ("", set()),
    ],
)
def test_only_whole_packages_count_as_installed(listing: str, names: set[str]) -> None:
    assert parse_installed(listing) == names


def test_the_volume_is_shared_and_outlives_its_claim() -> None:
    spec = build_volume(SANDBOX)["spec"]
    assert "ReadWriteMany" in spec["accessModes"]
    assert spec["persistentVolumeReclaimPolicy"] == "Retain"
    assert spec["hostPath"]["path"] == "/s p/volume"


def test_a_node_is_named_by_its_number() -> None:
    assert Node(2, Path("/x")).name == "node2"
