"""Makes simulated cards behave as if a node's pods computed on them; one program per node.

It announces the cards to the node's kubelet, asks the kubelet four times a second which card is allocated to which pod, makes a card
as busy as its pod's CPU, slows that pod as the card's clock falls, and reports the allocations to the exact meter.

A holder may use `cores` per card at the highest clock and `cores` × slowdown below, at all times: were there no quota
at the highest clock, the first watt of a cap would cost a pod that computes on two cores half its speed.

Run as `python -m sandbox.simgpu.daemon --node-directory DIRECTORY …` with .venv's interpreter; `up` does so. SIGTERM
gives back every quota and saves the meter; after SIGKILL the next one goes on with cards, meter and quotas as it finds
them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from greentrain.devices.errors import Unavailable, Unsupported
from greentrain.devices.nvidia.references import FullCard, get_unit
from greentrain.devices.podresources import PodKey, PodResources
from sandbox import cgroups
from sandbox.cgroups import CgroupMode, Driver
from sandbox.deviceplugin import DevicePlugin, build_reader
from sandbox.shell import SandboxError
from sandbox.simgpu.cards import NANOSECONDS, Cards, CardsError
from sandbox.simgpu.meter import Meter
from sandbox.simgpu.nodecards import (
    DEFAULT_CORES,
    DEFAULT_GPUS,
    DEFAULT_PROFILE,
    Gpus,
    Places,
    apply_library,
    check_profile,
    open_boot,
    parse_node,
)
from sandbox.simgpu.throttle import PodCgroups, Throttle, decide_load, round_load, smooth_load

LOOK_SECONDS = 0.25
SAVE_SECONDS = 0.9
"""Between two savings of the meter, with a look's length to spare for «at least once a second»."""

TRUST_SECONDS = 5.0
"""After a silence of the kubelet: one that starts answers at once and lists its pods a moment later."""

KUBELET_SECONDS = 2.0
RETRY_SECONDS = 1.0


@dataclass
class _Holder:
    """A pod that holds cards, and what is known of its cgroups."""

    cards: tuple[int, ...]
    uid: str | None = None
    usage: Path | None = None
    last: tuple[int, int] | None = None
    """When its CPU time was read last, and what it was."""
    allowed: float = 0.0
    """Cores it has been allowed since."""
    load: float = 0.0
    containers: list[Path] = field(default_factory=list)


class Follower:
    """Follows the holders of a node's cards, one `look` at a time."""

    def __init__(
        self,
        cards: Cards,
        meter: Meter,
        kubelet: PodResources,
        groups: PodCgroups,
        throttle: Throttle,
        pod_logs: Path,
        *,
        cores: float,
        report: Callable[[str], None],
    ) -> None:
        """`pod_logs` is the kubelet's folder of NAMESPACE_POD_UID folders, `cores` what makes one card busy."""
        self._cards = cards
        self._meter = meter
        self._kubelet = kubelet
        self._groups = groups
        self._throttle = throttle
        self._pod_logs = pod_logs
        self._cores = cores
        self._report = report
        self._numbers = {cards.read_card(card).uuid: card for card in cards}
        self._held: dict[int, str | None] = {}
        self._holders: dict[PodKey, _Holder] | None = None
        self._silent = False
        self._trusted_ns = 0

    async def look(self) -> None:
        """See who holds what now, and let load, speed and meter follow."""
        held = await self._read_held()
        if held is not None:
            self._follow(held)
        if self._holders is None:
            return  # never heard of the kubelet: the cards stay as the daemon before left them
        for holder in self._holders.values():
            with contextlib.suppress(OSError):  # its pod ended this moment; the kubelet says so soon
                self._measure(holder)
        self._throttle.keep_only({f for holder in self._holders.values() for f in holder.containers})

    def end(self) -> None:
        """Give back every quota, let the cards rest and save the meter."""
        self._throttle.keep_only(())
        for card in self._cards:
            self._set_load(card, 0.0)
        self._meter.save()

    async def _read_held(self) -> dict[PodKey, tuple[int, ...]] | None:
        """The cards each pod holds; None when the kubelet does not answer, which disproves nothing."""
        try:
            listing = await self._kubelet.read_allocations()
        except (Unavailable, Unsupported) as error:
            if not self._silent:
                self._report(str(error))
            self._silent = True
            return None
        if self._silent:
            self._report("The kubelet answers again.")
            self._trusted_ns = self._cards.now_ns + round(TRUST_SECONDS * NANOSECONDS)
        self._silent = False
        found: dict[PodKey, set[int]] = {}
        for allocation in listing.allocations:
            unit = get_unit(allocation.card)
            number = self._numbers.get(unit.uuid) if isinstance(unit, FullCard) else None
            if number is not None:
                found.setdefault(PodKey(allocation.namespace, allocation.pod), set()).add(number)
        if self._cards.now_ns < self._trusted_ns:
            taken = {card for numbers in found.values() for card in numbers}
            for key, holder in (self._holders or {}).items():
                alive = holder.usage is not None and holder.usage.is_dir()
                if key not in found and alive and not taken & set(holder.cards):
                    found[key] = set(holder.cards)
        return {key: tuple(sorted(numbers)) for key, numbers in found.items()}

    def _follow(self, held: dict[PodKey, tuple[int, ...]]) -> None:
        names: dict[int, str | None] = dict.fromkeys(self._cards)
        names |= {card: "/".join(key) for key, numbers in held.items() for card in numbers}
        for card, name in names.items():
            if card not in self._held or self._held[card] != name:
                self._meter.hold(card, name)
                self._report(f"card {card}: {f'allocated to {name}' if name else 'free'}")
                if name is None:
                    self._set_load(card, 0.0)
        self._held = names
        known = self._holders or {}
        self._holders = {}
        for key, numbers in held.items():
            holder = known.get(key) or _Holder(numbers)
            holder.cards = numbers
            if holder.usage is None or not holder.usage.is_dir():
                # Not started yet, or another pod has come under this name.
                self._find(key, holder)
            self._holders[key] = holder

    def _find(self, key: PodKey, holder: _Holder) -> None:
        """Find a pod's cgroups by its UID, which the kubelet shows in the names of its log folders only.

        Better than asking the API server, which may be away for a while and is not to be kept busy by looks.
        """
        holder.uid = holder.usage = holder.last = None
        for folder in self._pod_logs.glob(f"{key.namespace}_{key.name}_*"):
            uid = folder.name.rpartition("_")[2]
            usage = self._groups.find_usage(uid)
            if usage is not None:
                holder.uid, holder.usage = uid, usage

    def _measure(self, holder: _Holder) -> None:
        """Let the load of a pod's cards follow its CPU time, and its quota follow the slowest of them."""
        holder.containers = [] if holder.uid is None else self._groups.find_containers(holder.uid)
        if holder.usage is None:
            holder.load = 0.0
            for card in holder.cards:
                self._set_load(card, 0.0)
        else:
            now, used = self._cards.now_ns, self._groups.read_used_ns(holder.usage)
            if holder.last is None:
                # What a daemon before this one measured holds until there is something to compare with.
                holder.load = self._cards.read_card(holder.cards[0]).load
            elif now > holder.last[0]:
                measured = decide_load(used - holder.last[1], now - holder.last[0], holder.allowed)
                holder.load = smooth_load(holder.load, measured)
            holder.last = (now, used)
            for card in holder.cards:
                self._set_load(card, round_load(holder.load))
        slowdown = min(self._cards.slowdown(card) for card in holder.cards)
        holder.allowed = slowdown * self._cores * len(holder.cards)
        for folder in holder.containers:
            self._throttle.slow(folder, holder.allowed)

    def _set_load(self, card: int, load: float) -> None:
        if self._cards.read_card(card).load != load:
            self._cards.set_load(card, load)


async def _keep(act: Callable[[], object], seconds: float) -> None:
    while True:
        act()
        await asyncio.sleep(seconds)


async def _announce(plugin: DevicePlugin) -> None:
    while True:
        try:
            await plugin.run()
        except (OSError, RuntimeError, grpc.RpcError) as error:
            # A kubelet that starts empties the directory of sockets, also while one is being made there.
            _report(f"The device plugin restarts: {error}")
        await asyncio.sleep(RETRY_SECONDS)


async def _watch(follower: Follower) -> None:
    while True:
        await follower.look()
        await asyncio.sleep(LOOK_SECONDS)


async def run(places: Places, gpus: Gpus, mode: CgroupMode) -> None:
    """Serve a node's cards until SIGTERM or SIGINT."""
    node = places.node
    groups = PodCgroups(mode, node)
    throttle = Throttle(groups, places.quotas)
    state, meter = open_boot(node, gpus, _report)
    socket = node.directory / "kubelet" / "pod-resources" / "kubelet.sock"
    uuids = [state.read_card(card).uuid for card in state]
    plugin = DevicePlugin(node.directory / "kubelet" / "device-plugins", build_reader(uuids, places.lost))
    with state:
        async with PodResources(socket, deadline_seconds=KUBELET_SECONDS) as kubelet:
            follower = Follower(
                state,
                meter,
                kubelet,
                groups,
                throttle,
                node.directory / "log" / "pods",
                cores=gpus.cores,
                report=_report,
            )
            meter.save()
            _report(f"{gpus} of {node.name} in {places.state}, exact meter in {places.meter}")
            tasks = [
                asyncio.ensure_future(work)
                for work in (_announce(plugin), _watch(follower), _keep(meter.save, SAVE_SECONDS))
            ]

            def stop() -> None:
                for task in tasks:
                    task.cancel()

            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stop)
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
                follower.end()
            for error in ended:
                if isinstance(error, Exception):
                    raise error
    _report("ended; every quota is as it was")


@contextlib.contextmanager
def _hold_lock(places: Places) -> Iterator[None]:
    """Keep a second daemon from the same cards; the kernel releases it whatever ends this program."""
    with (places.judge / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SandboxError(
                f"Another daemon serves the cards of {places.node.directory} already."
            ) from None
        yield


def _report(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sandbox.simgpu.daemon", description=__doc__)
    add = parser.add_argument
    add("--node-directory", type=Path, required=True, help="the node's folder, named node1, node2 …")
    add("--profile", default=DEFAULT_PROFILE, help="default: %(default)s")
    add("--cards", type=int, default=DEFAULT_GPUS, help="default: %(default)s")
    add("--cores", type=float, default=DEFAULT_CORES, help="CPU cores that make one card busy")
    add("--cgroup-version", type=int, choices=(1, 2), help="of --hierarchy (default: what the machine has)")
    add("--hierarchy", type=Path, action="append", default=[], help="where cgroups are mounted")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    asked = _parser().parse_args(arguments)
    try:
        gpus = Gpus(asked.cards, asked.profile, asked.cores)
        check_profile(gpus)
        places = Places(parse_node(asked.node_directory))
        mode = cgroups.read_mode()
        if asked.hierarchy:
            mode = CgroupMode(asked.cgroup_version or 1, Driver.CGROUPFS, tuple(asked.hierarchy))
        apply_library(places.node)
        with _hold_lock(places):
            asyncio.run(run(places, gpus, mode))
    except (SandboxError, CardsError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
