"""Brings the sandbox up: from nothing, from what a killed run left, or in about a second when it is up already."""

from __future__ import annotations

import contextlib
import fcntl
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from sandbox import (
    binaries,
    cgroups,
    controlplane,
    dns,
    environment,
    network,
    node,
    packages,
    pause,
    pki,
    shell,
    sysctls,
    volume,
)
from sandbox.api import Api, ApiError
from sandbox.binaries import Binaries
from sandbox.cache import read_cache_directory
from sandbox.controlplane import build_api, build_server_pki, read_credentials
from sandbox.down import remove_sandbox, sweep
from sandbox.shell import SandboxError
from sandbox.simgpu import nodecards
from sandbox.simgpu.nodecards import Gpus
from sandbox.state import (
    API_PORT,
    CONTEXT,
    CONTROLLER_MANAGER_PORT,
    DIRECTORY_VARIABLE,
    ETCD_PEER_PORT,
    ETCD_PORT,
    HOST_ADDRESS,
    OWNER_FILE,
    SCHEDULER_PORT,
    Node,
    Program,
    Sandbox,
    check_alive,
    find_marked,
    kill,
    launch,
    read_records,
    wait_gone,
)
from sandbox.steps import Step, run_steps

LOCK_FILE = Path("/run/greentrain-sandbox.lock")
"""Held while the sandbox is brought up or down, so that two runs do not do so at once."""

CONTROL_PLANE_PARTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "dns",
    "dnsmasq",
)

NODE_PARTS = ("containerd", "kubelet", "kube-proxy")

PORT_FREE_SECONDS = 5.0

GPU_PART = "simgpu"
"""Name, before the node's, of the part that serves a node's simulated GPUs."""

GPU_RESOURCE = "nvidia.com/gpu"
GPU_SECONDS = 60.0
GPU_END_SECONDS = 5.0

REPOSITORY = Path(__file__).resolve().parent.parent


def wait_until(true: Callable[[], bool], timeout: float, otherwise: Callable[[], SandboxError]) -> None:
    """Ask `true` ten times a second until it is true.

    Raises:
        SandboxError: what `otherwise` builds, after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not true():
        shell.check_going()
        if time.monotonic() > deadline:
            raise otherwise()
        time.sleep(0.1)


def wait_ready(
    sandbox: Sandbox, name: str, program: Program, true: Callable[[], bool], timeout: float = 90.0
) -> None:
    """Wait until a part says that it is ready.

    Raises:
        SandboxError: it ended, or was not ready within `timeout` seconds.
    """

    def look() -> bool:
        check_alive(sandbox, name, program)
        return true()

    wait_until(
        look,
        timeout,
        lambda: SandboxError(
            f"{name} was not ready within {timeout:.0f} s.",
            log=sandbox.log / f"{name}.log",
            remedy="python3 -m sandbox down, then up again; docs/start/sandbox.md has known causes",
        ),
    )


def check_ports_free() -> None:
    """Refuse to start where another program listens on a port of the control plane.

    Raises:
        SandboxError: one is taken.
    """
    for port in (API_PORT, ETCD_PORT, ETCD_PEER_PORT, CONTROLLER_MANAGER_PORT, SCHEDULER_PORT):
        # A server just killed keeps its socket until the last of its threads has ended.
        deadline = time.monotonic() + PORT_FREE_SECONDS
        while controlplane.is_listening(port) and time.monotonic() < deadline:
            time.sleep(0.1)
        if controlplane.is_listening(port):
            raise SandboxError(
                f"Another program listens on port {port}, which the sandbox needs; see «ss -ltnp sport = :{port}» and end it."
            )


def check_owner(sandbox: Sandbox) -> None:
    """Refuse to touch the one sandbox of this machine from another directory.

    Raises:
        SandboxError: a sandbox of another directory is up.
    """
    with contextlib.suppress(FileNotFoundError):
        owner = Path(OWNER_FILE.read_text().strip())
        if owner != sandbox.directory and any(True for _ in find_marked(Sandbox(owner))):
            raise SandboxError(
                f"A sandbox is up in {owner} and a machine runs one only; run:"
                f" {DIRECTORY_VARIABLE}={owner} python3 -m sandbox down"
            )


def _write_kubeconfig(
    sandbox: Sandbox, path: Path, credential: str, user: str, server: str, name: str
) -> Path:
    text = pki.build_kubeconfig(
        name=name,
        server=server,
        authority=sandbox.server.pki / "ca.crt",
        user=user,
        credentials=read_credentials(sandbox.server, credential),
    )
    return pki.write_kubeconfig(path, text)


def make_certificates(sandbox: Sandbox, nodes: Sequence[Node]) -> None:
    """Write the authority, every part's certificate and every kubeconfig."""
    settings = sandbox.server
    build_server_pki(settings, [HOST_ADDRESS])
    authority = read_credentials(settings, "ca")
    for part in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
        pki.issue(authority, settings.pki, part, common_name=f"system:{part}")
        # kube-proxy runs in the nodes' network namespaces, whose loopback is another.
        server = f"https://{HOST_ADDRESS}:{API_PORT}" if part == "kube-proxy" else settings.url
        _write_kubeconfig(
            sandbox, settings.pki / f"{part}.kubeconfig", part, f"system:{part}", server, "sandbox"
        )
    _write_kubeconfig(sandbox, sandbox.kubeconfig, "admin", f"{CONTEXT}-admin", settings.url, CONTEXT)
    for one in nodes:
        node.apply_certificates(sandbox, one)


def link_kubectl(sandbox: Sandbox, programs: Binaries) -> None:
    """Put the cluster's own kubectl where a person's PATH can lead: another version may be installed, or none."""
    sandbox.programs.mkdir(parents=True, exist_ok=True)
    link = sandbox.programs / "kubectl"
    link.unlink(missing_ok=True)
    link.symlink_to(programs.kubectl)


def start_etcd(sandbox: Sandbox, programs: Binaries) -> None:
    """Start etcd and wait until it listens."""
    program = launch(sandbox, "etcd", [programs.etcd, *controlplane.build_etcd_arguments(sandbox.server)])
    wait_ready(sandbox, "etcd", program, lambda: controlplane.is_listening(ETCD_PORT))


def start_apiserver(sandbox: Sandbox, programs: Binaries) -> None:
    """Start the API server and wait until it is ready."""
    arguments = controlplane.build_apiserver_arguments(sandbox.server)
    program = launch(sandbox, "kube-apiserver", [programs.kube_apiserver, *arguments])
    wait_ready(sandbox, "kube-apiserver", program, build_api(sandbox.server).is_ready)


def start_controllers(sandbox: Sandbox, programs: Binaries) -> None:
    """Start the controller-manager and the scheduler and wait until both listen."""
    folder = sandbox.server.pki

    def common(part: str, port: int) -> list[str]:
        kubeconfig = folder / f"{part}.kubeconfig"
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={folder / f'{part}.crt'}",
            f"--tls-private-key-file={folder / f'{part}.key'}",
            "--leader-elect=false",
            "--v=1",
        ]

    controllers = launch(
        sandbox,
        "kube-controller-manager",
        [
            programs.kube_controller_manager,
            *common("kube-controller-manager", CONTROLLER_MANAGER_PORT),
            f"--root-ca-file={folder / 'ca.crt'}",
            f"--service-account-private-key-file={folder / 'service-accounts.key'}",
            "--use-service-account-credentials=true",
            # A claim made before its volume is looked at again soon.
            "--pvclaimbinder-sync-period=5s",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ],
    )
    scheduler = launch(
        sandbox,
        "kube-scheduler",
        [
            programs.kube_scheduler,
            *common("kube-scheduler", SCHEDULER_PORT),
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ],
    )
    for name, program, port in (
        ("kube-controller-manager", controllers, CONTROLLER_MANAGER_PORT),
        ("kube-scheduler", scheduler, SCHEDULER_PORT),
    ):
        wait_ready(sandbox, name, program, partial(controlplane.is_listening, port))


def start_dns(sandbox: Sandbox) -> None:
    """Start dnsmasq beside the switch of the sandbox's network, and the program that keeps its names."""
    hosts = sandbox.directory / "hosts"
    hosts.touch()
    launch(
        sandbox, "dnsmasq", network.build_namespace_command(network.SWITCH, dns.build_dnsmasq_command(hosts))
    )
    launch(
        sandbox,
        "dns",
        [sys.executable, "-m", "sandbox.dns", sandbox.directory],
        environ={"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def is_node_ready(api: Api, one: Node) -> bool:
    """Whether a Node object exists and its Ready condition is True."""
    try:
        found = api.get(f"/api/v1/nodes/{one.name}", timeout=2.0)
    except ApiError:
        return False
    conditions = found.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def wait_service_account(api: Api) -> None:
    """Wait until pods can be created in the default namespace: its service account is there."""

    def look() -> bool:
        try:
            api.get("/api/v1/namespaces/default/serviceaccounts/default")
        except ApiError:
            return False
        return True

    wait_until(
        look, 60, lambda: SandboxError("The namespace default got no service account within a minute.")
    )


def is_healthy(sandbox: Sandbox, count: int) -> bool:
    """Whether every part runs, the API answers and the first `count` nodes are ready."""
    records = read_records(sandbox)
    nodes = sandbox.started_nodes()
    names = [
        *CONTROL_PLANE_PARTS,
        *(f"{part}-{one.name}" for one in nodes for part in NODE_PARTS),
    ]
    if len(nodes) < count or not all(name in records and records[name].is_alive() for name in names):
        return False
    api = build_api(sandbox.server)
    return api.is_ready() and all(is_node_ready(api, one) for one in nodes)


def start_node(sandbox: Sandbox, one: Node) -> None:
    """Start kubelet and kube-proxy of a node whose containerd runs, and wait until it is Ready.

    Raises:
        SandboxError: one of them ended, or the node was not Ready within two minutes.
    """
    programs = binaries.gather_binaries()
    kubelet = node.apply_kubelet(sandbox, one, cgroups.read_mode(), programs.kubelet)
    proxy = node.apply_proxy(sandbox, one, programs.kube_proxy)
    api = build_api(sandbox.server)
    wait_ready(sandbox, f"kubelet-{one.name}", kubelet, lambda: is_node_ready(api, one), 120.0)
    check_alive(sandbox, f"kube-proxy-{one.name}", proxy)


def read_allocatable_gpus(api: Api, one: Node) -> int | None:
    """How many GPUs Kubernetes says a node could give; None when it does not answer."""
    try:
        found = api.get(f"/api/v1/nodes/{one.name}", timeout=2.0)
    except ApiError:
        return None
    return int(found.get("status", {}).get("allocatable", {}).get(GPU_RESOURCE, 0))


def _is_announced(sandbox: Sandbox, one: Node, gpus: Gpus) -> bool:
    # A node that was off still has its old number in Kubernetes; that this daemon has been heard by the kubelet, only
    # its own log says.
    log = sandbox.log / f"{GPU_PART}-{one.name}.log"
    return f"{GPU_RESOURCE} registered" in log.read_text() and gpus.cards == read_allocatable_gpus(
        build_api(sandbox.server), one
    )


def start_gpus(sandbox: Sandbox, one: Node, gpus: Gpus) -> None:
    """Start the daemon of a running node's cards, ending one of older sources, and wait until pods can ask for them.

    Raises:
        SandboxError: it ended, there is no .venv, or Kubernetes does not show the cards within a minute.
    """
    name = f"{GPU_PART}-{one.name}"
    python = REPOSITORY / ".venv" / "bin" / "python"
    if not python.exists():
        raise SandboxError(f"{python} is missing, and simulated GPUs need it; run: make venv")
    old = read_records(sandbox).get(name)
    if old is not None and old.is_alive():
        kill([old.pid], signal.SIGTERM)
        if not wait_gone([old.pid], GPU_END_SECONDS):
            kill([old.pid])
            wait_gone([old.pid], GPU_END_SECONDS)
    nodecards.write_note(one, gpus)
    nodecards.apply_library(one)
    node.apply_overlays(sandbox, one)
    nodecards.Places(one).version.write_text(nodecards.build_version())
    program = launch(
        sandbox,
        name,
        [
            *(python, "-m", "sandbox.simgpu.daemon", "--node-directory", one.directory),
            *("--profile", gpus.profile, "--cards", str(gpus.cards), "--cores", str(gpus.cores)),
        ],
        environ={
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONDONTWRITEBYTECODE": "1",
            "GREENTRAIN_CACHE": str(read_cache_directory()),
        },
    )
    wait_ready(sandbox, name, program, lambda: _is_announced(sandbox, one, gpus), GPU_SECONDS)


def decide_gpus(one: Node, asked: Gpus) -> Gpus:
    """The cards a node has: those it was given first, else those asked for now."""
    return nodecards.read_note(one) or asked


def find_without_gpus(sandbox: Sandbox, nodes: Sequence[Node], asked: Gpus) -> dict[Node, Gpus]:
    """The cards of the nodes that shall have some and whose daemon does not run, or runs from older sources."""
    records = read_records(sandbox)
    found = {}
    for one in nodes:
        gpus = decide_gpus(one, asked)
        if gpus.cards:
            daemon = records.get(f"{GPU_PART}-{one.name}")
            if daemon is None or not daemon.is_alive() or not nodecards.is_current(one):
                found[one] = gpus
    return found


def build_gpu_steps(
    sandbox: Sandbox, wanted: Mapping[Node, Gpus], needs: tuple[str, ...], joining: Sequence[Node]
) -> list[Step]:
    """The steps that give nodes their cards, those of `joining` after the step that joins them; `needs` of the first."""
    equipped = {one: gpus for one, gpus in wanted.items() if gpus.cards}
    if not equipped:
        return []

    def provide_environment() -> str:
        return environment.apply_environment(read_cache_directory())

    def compile_library() -> None:
        for gpus in equipped.values():
            nodecards.check_profile(gpus)

    steps = [
        Step("environment", "providing .venv, in which their program runs", 0, provide_environment, needs),
        Step("cards", "compiling the simulated GPUs", 0, compile_library, needs),
    ]
    for one, gpus in equipped.items():
        steps.append(
            Step(
                f"gpus-{one.name}",
                f"giving {one.name} its simulated GPUs ({gpus})",
                2,
                _quietly(partial(start_gpus, sandbox, one, gpus)),
                ("environment", "cards", *((one.name,) if one in joining else ())),
            )
        )
    return steps


@contextlib.contextmanager
def hold_lock() -> Iterator[None]:
    """Keep other runs from bringing the sandbox up or down meanwhile."""
    with LOCK_FILE.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("▸ waiting for another run that is bringing the sandbox up or down", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def build_node_steps(
    sandbox: Sandbox, one: Node, needs: tuple[tuple[str, ...], tuple[str, ...]]
) -> list[Step]:
    """The two steps that start a node, whose certificates and address are there; `needs` of the first and the second."""

    def make() -> None:
        network.apply_node(one)
        node.apply_containerd(sandbox, one, cgroups.read_mode())
        node.import_into(one, pause.apply_pause_archive(read_cache_directory()))

    first = f"containerd-{one.name}"
    return [
        Step(first, f"starting containerd of {one.name}", 1, _quietly(make), needs[0]),
        Step(one.name, f"joining {one.name}", 2, lambda: start_node(sandbox, one), (first, *needs[1])),
    ]


def _quietly(act: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        act()

    return run


def join_nodes(sandbox: Sandbox, missing: Sequence[Node], gpus: Gpus) -> None:
    """Add nodes to a running sandbox, and give all its nodes the cards they lack."""
    if missing:
        node.apply_mount_points(sandbox)
    for one in missing:
        node.apply_certificates(sandbox, one)
    for one in missing:
        nodecards.write_note(one, gpus)
    wanted = find_without_gpus(sandbox, sandbox.started_nodes(), gpus) | dict.fromkeys(missing, gpus)
    run_steps(
        [
            *(step for one in missing for step in build_node_steps(sandbox, one, ((), ()))),
            *build_gpu_steps(sandbox, wanted, (), missing),
        ]
    )


def build_steps(sandbox: Sandbox, count: int, gpus: Gpus, *, prepared: bool = False) -> list[Step]:
    """The steps that bring a sandbox of `count` nodes with these cards up where nothing of it runs.

    `prepared` leaves out installing packages and building Kubernetes, for a caller whose own steps do that.
    """
    nodes = sandbox.nodes(count)
    cache = read_cache_directory()
    server = sandbox.server
    api = build_api(server)

    def clear() -> str | None:
        removed = remove_sandbox(sandbox)
        for one in nodes:
            nodecards.write_note(one, gpus)
        check_ports_free()
        # Kept so far for those who look for a cause; the audit log of one cluster must not be counted for the next.
        shutil.rmtree(sandbox.log, ignore_errors=True)
        sandbox.directory.mkdir(parents=True, exist_ok=True)
        OWNER_FILE.write_text(f"{sandbox.directory}\n")
        node.apply_mount_points(sandbox)
        sysctls.keep(sandbox)
        return f"removed {', '.join(removed)}" if removed else None

    def make_network() -> None:
        network.apply_network()
        network.apply_service_route(nodes[0])

    before: list[Step] = []
    if not prepared:
        before = [packages.build_step(cache), binaries.build_step(cache, ("packages",))]
    packages_done = tuple(step.name for step in before[:1])
    binaries_done = tuple(step.name for step in before[1:])
    steps = [
        *before,
        Step("leftovers", "clearing what an earlier run left", 0, clear, packages_done),
        Step("sweep", "deleting old files", 0, _quietly(lambda: sweep(sandbox)), ("leftovers",)),
        Step(
            "certificates",
            "making certificates",
            1,
            _quietly(lambda: make_certificates(sandbox, nodes)),
            ("leftovers",),
        ),
        Step("network", "making the network", 1, make_network, ("leftovers",)),
        Step(
            "pause",
            "building the pause image",
            0,
            _quietly(lambda: pause.apply_pause_archive(cache)),
            packages_done,
        ),
        Step(
            "etcd",
            "starting etcd",
            1,
            _quietly(lambda: start_etcd(sandbox, binaries.gather_binaries())),
            ("leftovers", *binaries_done),
        ),
        Step(
            "kubectl",
            "linking kubectl",
            0,
            lambda: link_kubectl(sandbox, binaries.gather_binaries()),
            ("leftovers", *binaries_done),
        ),
        Step(
            "apiserver",
            "starting the API server",
            3,
            _quietly(lambda: start_apiserver(sandbox, binaries.gather_binaries())),
            ("etcd", "certificates", "network"),
        ),
        Step(
            "controllers",
            "starting controller-manager and scheduler",
            1,
            _quietly(lambda: start_controllers(sandbox, binaries.gather_binaries())),
            ("apiserver",),
        ),
        Step("dns", "starting the cluster's DNS", 0, _quietly(lambda: start_dns(sandbox)), ("apiserver",)),
        Step(
            "volume", "making the shared volume", 0, lambda: volume.apply_volume(api, sandbox), ("apiserver",)
        ),
        Step(
            "accounts",
            "waiting for service accounts",
            1,
            _quietly(lambda: wait_service_account(api)),
            ("controllers",),
        ),
    ]
    for one in nodes:
        steps += build_node_steps(sandbox, one, (("certificates", "network", "pause"), ("apiserver",)))
    return [*steps, *build_gpu_steps(sandbox, dict.fromkeys(nodes, gpus), packages_done, nodes)]


def describe_gpus(sandbox: Sandbox, asked: Gpus) -> str:
    """Which cards the nodes have, for a person; where others were asked for, how to get them."""
    kept = {one.name: decide_gpus(one, asked) for one in sandbox.started_nodes()}
    text = ", ".join(f"{name} {gpus}" for name, gpus in kept.items())
    differ = nodecards.is_asked() and any(
        gpus != asked for gpus in kept.values() if gpus.cards or asked.cards
    )
    return f"GPUs: {text}{f' (kept; for {asked}: down, then up)' if differ else ''}."


def describe_use(sandbox: Sandbox) -> str:
    """How to go on, for a person."""
    return f"export KUBECONFIG={shlex.quote(str(sandbox.kubeconfig))} PATH={shlex.quote(str(sandbox.programs))}:$PATH"


def bring_up(sandbox: Sandbox, count: int, *, prepared: bool = False) -> str:
    """Bring the sandbox up with at least `count` nodes, printing each step; returns a closing line.

    A healthy sandbox is left as it is, but for nodes it lacks and cards without a daemon; its volume is freed for a new
    claim where the old one is gone. A sandbox of which another part has died is removed and made anew.

    Raises:
        SandboxError: a step failed; it says what, the last log lines and the remedy.
    """
    packages.check_root()
    gpus = nodecards.read_gpus()
    began = time.monotonic()
    with hold_lock():
        check_owner(sandbox)
        if is_healthy(sandbox, 1):
            started = {one.number for one in sandbox.started_nodes()}
            join_nodes(sandbox, [one for one in sandbox.nodes(count) if one.number not in started], gpus)
            freed = volume.apply_volume(build_api(sandbox.server), sandbox)
            running = len(sandbox.started_nodes())
            return f"The sandbox is up already ({running} node{'s' * (running > 1)}, volume {freed}). {describe_gpus(sandbox, gpus)} {describe_use(sandbox)}"
        run_steps(build_steps(sandbox, count, gpus, prepared=prepared))
    took = time.monotonic() - began
    return f"The sandbox is up ({count} node{'s' * (count > 1)}, {took:.0f} s). {describe_gpus(sandbox, gpus)} {describe_use(sandbox)}"
