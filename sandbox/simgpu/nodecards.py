"""A sandbox node's simulated cards: which it has, where their files lie, and how they begin and end with its boots.

`<node>/simgpu` is all that pods may see: `libnvidia-ml.so.1` and the shared state; every node shows it as
/opt/greentrain-simgpu. `<node>/meter` is the judge's and is mounted nowhere. State and exact meter begin together with
a boot and end together when the power goes; what an ended boot used stays in `meter/boot-N.json`.

Standard library only: `up`, `power-off` and tests use it beside the daemon, whose program is `sandbox.simgpu.daemon`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandbox.shell import SandboxError
from sandbox.simgpu import cards
from sandbox.simgpu.build import NVML, apply_libraries
from sandbox.simgpu.cards import MAX_CARDS, Cards, CardsError
from sandbox.simgpu.meter import IDLE, Meter
from sandbox.state import Node

GPUS_VARIABLE = "GREENTRAIN_SANDBOX_GPUS"
PROFILE_VARIABLE = "GREENTRAIN_SANDBOX_GPU_PROFILE"
CORES_VARIABLE = "GREENTRAIN_SANDBOX_GPU_CORES"

DEFAULT_GPUS = 2
DEFAULT_PROFILE = "V100"
DEFAULT_CORES = 1.0

RESTART_ON = ("daemon.py", "throttle.py", "nodecards.py", "meter.py", "cards.py", "../deviceplugin.py")
"""Sources of the daemon beside the C library's: after a change of theirs `up` starts it anew."""


@dataclass(frozen=True)
class Gpus:
    """What every node has: how many cards of which profile, and the CPU cores that make one card busy."""

    cards: int
    profile: str
    cores: float

    def __str__(self) -> str:
        return f"{self.cards} × {self.profile}" if self.cards else "none"


def read_gpus(environ: Mapping[str, str] = os.environ) -> Gpus:
    """What the environment variables ask for; two V100 a node when unset.

    Raises:
        SandboxError: a number that is none or out of range. The profile is looked at by `check_profile`.
    """
    count = environ.get(GPUS_VARIABLE, "").strip() or str(DEFAULT_GPUS)
    cores = environ.get(CORES_VARIABLE, "").strip() or str(DEFAULT_CORES)
    if not count.isdecimal() or int(count) > MAX_CARDS:
        raise SandboxError(
            f"{GPUS_VARIABLE} is «{count}»; give how many GPUs each node has, 0 to {MAX_CARDS}."
        )
    try:
        share = float(cores)
    except ValueError:
        share = 0.0
    if not 0.1 <= share <= 64:
        raise SandboxError(
            f"{CORES_VARIABLE} is «{cores}»; give how many CPU cores make one GPU busy, 0.1 to 64."
        )
    profile = environ.get(PROFILE_VARIABLE, "").strip() or DEFAULT_PROFILE
    return Gpus(int(count), profile, share)


def is_asked(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a user chose the cards, or left them at their default."""
    return any(environ.get(name, "").strip() for name in (GPUS_VARIABLE, PROFILE_VARIABLE, CORES_VARIABLE))


def check_profile(gpus: Gpus) -> None:
    """Refuse a profile that no card has; compiles the libraries when they are not there.

    Raises:
        SandboxError: there is none of that name.
    """
    known = cards.read_profiles()
    if gpus.cards and gpus.profile not in known:
        raise SandboxError(f"{PROFILE_VARIABLE} is «{gpus.profile}»; give one of {', '.join(known)}.")


@dataclass(frozen=True)
class Places:
    """Where a node's cards keep what."""

    node: Node

    @property
    def shared(self) -> Path:
        """The folder pods may see."""
        return self.node.directory / "simgpu"

    @property
    def state(self) -> Path:
        """The cards themselves, for `cards.open`."""
        return self.shared / "state"

    @property
    def judge(self) -> Path:
        """The folder no pod sees."""
        return self.node.directory / "meter"

    @property
    def meter(self) -> Path:
        """The exact meter's file of the present boot."""
        return self.judge / "meter.json"

    @property
    def quotas(self) -> Path:
        """The CPU quotas that stood before the daemon changed them."""
        return self.judge / "quotas.json"

    @property
    def lost(self) -> Path:
        """May name cards, one UUID on a line, that the device plugin is to announce as unhealthy."""
        return self.judge / "lost"

    @property
    def note(self) -> Path:
        """Which cards the node has, so that it has the same after `power-on`."""
        return self.judge / "gpus.json"

    @property
    def version(self) -> Path:
        """Which sources the daemon was started from."""
        return self.judge / "version"

    def ended_boots(self) -> list[Path]:
        """What the boots before the present one used, oldest first."""
        found = [path for path in self.judge.glob("boot-*.json") if path.stem[5:].isdecimal()]
        return sorted(found, key=lambda path: int(path.stem[5:]))


def parse_node(directory: Path) -> Node:
    """The node whose folder this is.

    Raises:
        SandboxError: its name is not nodeN.
    """
    number = directory.name.removeprefix("node")
    if not number.isdecimal() or directory.name == number:
        raise SandboxError(f"{directory} is no node's folder; give one named node1, node2 …")
    return Node(int(number), directory.absolute())


def read_note(node: Node) -> Gpus | None:
    """The cards a node was given; None where it has not been given any."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        fields = json.loads(Places(node).note.read_text())
        return Gpus(int(fields["cards"]), str(fields["profile"]), float(fields["cores"]))
    return None


def write_note(node: Node, gpus: Gpus) -> None:
    """Note the cards a node has."""
    places = Places(node)
    places.judge.mkdir(parents=True, exist_ok=True)
    places.note.write_text(json.dumps(asdict(gpus)))


def build_version() -> str:
    """What distinguishes the daemon's present sources, its library's included, from others."""
    digest = hashlib.sha256(str(apply_libraries().folder).encode())
    for name in RESTART_ON:
        digest.update(Path(__file__).parent.joinpath(name).read_bytes())
    return digest.hexdigest()[:12]


def is_current(node: Node) -> bool:
    """Whether a node's daemon was started from the present sources."""
    with contextlib.suppress(OSError):
        return Places(node).version.read_text() == build_version()
    return False


def apply_library(node: Node) -> None:
    """Put the NVML library where the node's pods find it; programs that use an older one keep it."""
    places = Places(node)
    places.shared.mkdir(parents=True, exist_ok=True)
    places.judge.mkdir(parents=True, exist_ok=True)
    # Made elsewhere: the shared folder has nothing but the library and the state.
    partial = places.judge / NVML
    shutil.copyfile(apply_libraries().nvml, partial)
    partial.chmod(0o755)
    partial.rename(places.shared / NVML)


def open_boot(node: Node, gpus: Gpus, report: Callable[[str], None]) -> tuple[Cards, Meter]:
    """The node's cards and their exact meter as an earlier daemon of this boot left them, else those of a new boot.

    Cards whose state or meter cannot be gone on with (another layout or kind, events lost) begin a new boot: joules
    that nothing accounts for any more are not guessed. The UUIDs depend on the node's number only, as the cards of a
    machine stay the same over its boots.
    """
    places = Places(node)
    for leftover in places.judge.glob(f"{places.meter.name}.*"):
        leftover.unlink()  # of a daemon killed while it saved
    if places.state.exists():
        try:
            return _adopt(places, gpus)
        except (CardsError, OSError, ValueError, KeyError, TypeError) as error:
            report(f"a new boot begins, the last one's cards cannot be gone on with: {error}")
    close_boot(node)
    places.shared.mkdir(parents=True, exist_ok=True)
    places.judge.mkdir(parents=True, exist_ok=True)
    made = cards.create(places.state, [gpus.profile] * gpus.cards, seed=node.number)
    return made, Meter(made, places.meter)


def _adopt(places: Places, gpus: Gpus) -> tuple[Cards, Meter]:
    state = cards.open(places.state)
    try:
        found = [state.read_card(card).profile for card in state]
        if found != [gpus.profile] * gpus.cards:
            raise ValueError(f"they are {', '.join(found)} and shall be {gpus}")
        return state, Meter(state, places.meter)
    except BaseException:
        state.close()
        raise


def close_boot(node: Node) -> None:
    """End the present boot, whose daemon must have ended: its joules become final, its counters and limits are gone."""
    places = Places(node)
    final: list[dict[str, Any]] | None = None
    with (
        contextlib.suppress(CardsError, OSError, ValueError, KeyError, TypeError),
        cards.open(places.state) as state,
    ):
        meter = Meter(state, places.meter)
        final = [{"uuid": state.read_card(card).uuid, "picojoules": meter.read(card)} for card in state]
    ended = places.ended_boots()
    path = places.judge / f"boot-{int(ended[-1].stem[5:]) + 1 if ended else 1}.json"
    if final is not None:
        path.write_text(json.dumps(final, indent=1))
    elif places.meter.exists():
        places.meter.rename(path)  # what was final when it was saved last is all that is known
    for gone in (places.meter, places.state):
        gone.unlink(missing_ok=True)


def read_picojoules(node: Node) -> dict[str, dict[str, int]]:
    """Exact picojoules up to now of each card (by UUID) by holder (`namespace/pod`, or `idle`), all boots together.

    Which pod a card is allocated to is known as of the daemon's last saving, at most a second ago.
    """
    places = Places(node)
    sums: dict[str, dict[str, int]] = {}

    def add(uuid: str, shares: Mapping[str, int]) -> None:
        known = sums.setdefault(uuid, {})
        for holder, picojoules in shares.items():
            known[holder] = known.get(holder, 0) + picojoules

    for path in places.ended_boots():
        for card in json.loads(path.read_text()):
            add(card["uuid"], card["picojoules"])
    if places.state.exists():
        with cards.open(places.state) as state:
            meter = Meter(state, places.meter)
            for number in state:
                add(state.read_card(number).uuid, meter.read(number))
    return sums


def read_joules(node: Node, holder: str = IDLE) -> float:
    """Exact joules up to now that a holder (`namespace/pod`) answers for on a node, rounded to a float."""
    total = sum(shares.get(holder, 0) for shares in read_picojoules(node).values())
    return total / cards.PICOJOULES
