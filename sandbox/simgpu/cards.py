"""The simulated cards as Python sees them: made, loaded, limited, broken and read through libsimgpu.so.

No physics is here: what a card draws is computed in c/physics.c alone, so that tests, tools and NVML programs cannot
disagree. Everything here acts on the shared state file, beside any number of other processes that do the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, IntFlag
from functools import cache
from pathlib import Path
from types import TracebackType

from sandbox.simgpu.build import apply_libraries

NANOSECONDS = 1_000_000_000
PICOJOULES = 1_000_000_000_000
FOREVER = (1 << 64) - 1
MAX_CARDS = 16
MAX_PROCESSES = 64
MAX_FAULTS = 32
_LIBRARY = MAX_CARDS
_WHOLE_CARD = 0xFFFF_FFFF


class CardsError(Exception):
    """What went wrong with simulated cards; the message names the field, its value and the remedy."""


class BadValueError(CardsError, ValueError):
    """A value that no card takes."""


class StateUnusableError(CardsError):
    """The state file is absent, of another layout, or not writable for this user."""


class EventsLostError(CardsError):
    """More events happened since the number asked for than a card remembers; drain them more often."""


class Calls(IntFlag):
    """Groups of NVML calls that a fault can concern."""

    ENERGY = 1
    POWER = 2
    LIMIT = 4
    SET = 8
    PROCESSES = 16
    CLOCKS = 32
    UTILIZATION = 64
    MEMORY = 128
    IDENTITY = 256
    MIG = 512
    OTHER = 1024
    INIT = 2048
    ALL = 4095


class Fault(Enum):
    """What can be wrong with a card, or with the library when no card is named."""

    LOST = "lost"
    RESET = "reset"
    NOT_SUPPORTED = "not-supported"
    NO_PERMISSION = "no-permission"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"
    SLOW = "slow"
    HANG = "hang"
    NOT_LOADED = "not-loaded"
    STUCK = "stuck"
    GARBAGE = "garbage"
    SHIFTED = "shifted"
    SHARE = "share"


# The kind in c/card.h, the calls concerned unless others are named, and for failures NVML's code.
_FAULTS: dict[Fault, tuple[int, Calls, int]] = {
    Fault.LOST: (2, Calls.ALL, 0),
    Fault.RESET: (3, Calls.ALL, 0),
    Fault.NOT_SUPPORTED: (1, Calls.ENERGY, 3),
    Fault.NO_PERMISSION: (1, Calls.SET, 4),
    Fault.TIMEOUT: (1, Calls.ALL & ~Calls.INIT, 10),
    Fault.UNKNOWN: (1, Calls.ALL & ~Calls.INIT, 999),
    Fault.SLOW: (4, Calls.ALL, 0),
    Fault.HANG: (5, Calls.ALL, 0),
    Fault.NOT_LOADED: (6, Calls.INIT, 0),
    Fault.STUCK: (7, Calls.ENERGY, 0),
    Fault.GARBAGE: (8, Calls.POWER, 0),
    Fault.SHIFTED: (9, Calls.ENERGY, 0),
    Fault.SHARE: (10, Calls.ENERGY, 0),
}


@dataclass(frozen=True)
class Profile:
    """A kind of card; powers in watts, clocks in MHz, memory in MiB."""

    key: str
    name: str
    min_watts: float
    default_watts: float
    max_watts: float
    idle_watts: float
    full_watts: float
    min_mhz: int
    max_mhz: int
    memory_mib: int


@dataclass(frozen=True)
class Card:
    """A card to make: the key of its profile, the MIG instances it is cut into (`None`: MIG is off), and its mode."""

    profile: str = "V100"
    instances: tuple[str, ...] | None = None
    persistence: bool = True


@dataclass(frozen=True)
class Process:
    """A process on a card: its id, the bytes it uses, and the number of the MIG instance it runs in."""

    pid: int
    memory_bytes: int = 0
    instance: int | None = None


@dataclass(frozen=True)
class Event:
    """From `at_ns` of the state's clock on, a card drew `milliwatts`."""

    at_ns: int
    milliwatts: int


@dataclass(frozen=True)
class Instance:
    """A MIG instance of a card."""

    uuid: str
    profile: str


@dataclass(frozen=True)
class Reading:
    """One card at one time, as it truly is; no fault shows here. Powers in watts, clocks in MHz."""

    at_ns: int
    profile: str
    uuid: str
    serial: str
    energy_pj: int
    counter_mj: int
    load: float
    watts: float
    average_watts: float
    limit_watts: float
    second_limit_watts: float | None
    enforced_watts: float
    clock_mhz: int
    reasons: int
    throughput: float
    memory_bytes: int
    persistence: bool
    mig: bool
    faults: int
    slow_calls: int
    slow_ms: int
    events: int

    @property
    def joules(self) -> float:
        """The energy since the card was made, rounded to a float."""
        return self.energy_pj / PICOJOULES


class _Options(ctypes.Structure):
    _fields_ = [
        ("profile", ctypes.c_uint32),
        ("mig", ctypes.c_uint32),
        ("instance_count", ctypes.c_uint32),
        ("persistence", ctypes.c_uint32),
        ("instances", (ctypes.c_char * 16) * 7),
    ]


class _Reading(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in (
                "now_ns",
                "energy_high",
                "energy_low",
                "counter_mj",
                "event_count",
                "reasons",
                "memory_bytes",
                "draw_mw",
                "average_mw",
                "limit_mw",
                "second_limit_mw",
                "enforced_mw",
                "clock_mhz",
                "load_ppm",
                "persistence",
                "mig",
                "instance_count",
                "fault_count",
                "slow_calls",
                "slow_ms",
                "profile",
            )
        ),
        ("throughput", ctypes.c_double),
        ("uuid", ctypes.c_char * 48),
        ("serial", ctypes.c_char * 16),
    ]


class _Profile(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in (
                "min_mw",
                "default_mw",
                "max_mw",
                "idle_mw",
                "full_mw",
                "min_mhz",
                "max_mhz",
                "memory_mib",
            )
        ),
        ("key", ctypes.c_char * 16),
        ("name", ctypes.c_char * 64),
    ]


class _Event(ctypes.Structure):
    _fields_ = [("at_ns", ctypes.c_uint64), ("draw_mw", ctypes.c_uint64)]


class _Process(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint32), ("instance", ctypes.c_uint32), ("memory_bytes", ctypes.c_uint64)]


_U32, _U64, _INT = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "simgpu_layout": (_U64, []),
    "simgpu_profile": (_INT, [_U32, ctypes.c_void_p]),
    "simgpu_create": (_INT, [ctypes.c_char_p, ctypes.c_void_p, _U32, _INT, _U64, _U32]),
    "simgpu_open": (_INT, [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p]),
    "simgpu_close": (None, [ctypes.c_void_p]),
    "simgpu_clock": (_INT, [ctypes.c_void_p] * 4),
    "simgpu_read": (_INT, [ctypes.c_void_p, _U32, ctypes.c_void_p]),
    "simgpu_instance": (_INT, [ctypes.c_void_p, _U32, _U32, ctypes.c_void_p, ctypes.c_void_p]),
    "simgpu_events": (_INT, [ctypes.c_void_p, _U32, _U64, ctypes.c_void_p, _U32, ctypes.c_void_p]),
    "simgpu_set_load": (_INT, [ctypes.c_void_p, _U32, _U32]),
    "simgpu_set_limit": (_INT, [ctypes.c_void_p, _U32, _U32]),
    "simgpu_set_second_limit": (_INT, [ctypes.c_void_p, _U32, _U32]),
    "simgpu_set_persistence": (_INT, [ctypes.c_void_p, _U32, _U32]),
    "simgpu_set_memory": (_INT, [ctypes.c_void_p, _U32, _U64]),
    "simgpu_set_processes": (_INT, [ctypes.c_void_p, _U32, ctypes.c_void_p, _U32]),
    "simgpu_add_fault": (_INT, [ctypes.c_void_p, _U32, _U32, _U32, _U64, _U64, _U64]),
    "simgpu_clear_faults": (_INT, [ctypes.c_void_p, _U32]),
    "simgpu_reload": (_INT, [ctypes.c_void_p, _U32]),
    "simgpu_advance": (_INT, [ctypes.c_void_p, _U64]),
}
_LAYOUT = ctypes.sizeof(_Reading) << 32 | ctypes.sizeof(_Options) << 16 | ctypes.sizeof(_Profile)


@cache
def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(apply_libraries().control))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    if library.simgpu_layout() != _LAYOUT:
        raise CardsError("libsimgpu.so and cards.py disagree on a struct; change both alike.")
    return library


@cache
def read_profiles() -> dict[str, Profile]:
    """Every kind of card there is, by key."""
    profiles: dict[str, Profile] = {}
    raw = _Profile()
    while _load().simgpu_profile(len(profiles), ctypes.byref(raw)) == 0:
        key = raw.key.decode()
        profiles[key] = Profile(
            key=key,
            name=raw.name.decode(),
            min_watts=raw.min_mw / 1000,
            default_watts=raw.default_mw / 1000,
            max_watts=raw.max_mw / 1000,
            idle_watts=raw.idle_mw / 1000,
            full_watts=raw.full_mw / 1000,
            min_mhz=raw.min_mhz,
            max_mhz=raw.max_mhz,
            memory_mib=raw.memory_mib,
        )
    return profiles


def create(
    path: Path, cards: Sequence[Card | str], *, virtual: bool = False, seed: int = 0, mode: int = 0o644
) -> Cards:
    """Make a state file with these cards (a bare string is a profile's key) and open it.

    `virtual`: the clock stands still except for `Cards.advance`; else it is the machine's. `seed` decides the UUIDs and
    serial numbers. A file that is there is replaced; programs that have it open keep the old one until they initialise
    NVML again.

    Raises:
        BadValueError: no card or more than 16, an unknown profile, or instances that this profile or 7 slices do not allow.
        StateUnusableError: the file could not be written.
    """
    wanted = [Card(card) if isinstance(card, str) else card for card in cards]
    if not 1 <= len(wanted) <= MAX_CARDS:
        raise BadValueError(f"cards: {len(wanted)} given; a state has 1 to {MAX_CARDS}")
    keys = list(read_profiles())
    options = (_Options * len(wanted))()
    for index, card in enumerate(wanted):
        if card.profile not in keys:
            raise BadValueError(
                f"cards[{index}].profile: there is no {card.profile!r}; give one of {', '.join(keys)}"
            )
        instances = card.instances or ()
        if len(instances) > 7:
            raise BadValueError(f"cards[{index}].instances: {len(instances)} given; a card has at most 7")
        options[index].profile = keys.index(card.profile)
        options[index].mig = card.instances is not None
        options[index].persistence = card.persistence
        options[index].instance_count = len(instances)
        for number, name in enumerate(instances):
            options[index].instances[number].value = name.encode()[:15]
    code = _load().simgpu_create(str(path).encode(), options, len(wanted), virtual, seed & FOREVER, mode)
    if code == -5:
        asked = {index: card.instances for index, card in enumerate(wanted) if card.instances}
        raise BadValueError(
            f"instances: {asked} do not fit; an A100 takes 1g.5gb, 2g.10gb, 3g.20gb, 4g.20gb, 7g.40gb, an H100"
            " 1g.10gb, 2g.20gb, 3g.40gb, 4g.40gb, 7g.80gb, together at most 7 slices"
        )
    if code != 0:
        raise StateUnusableError(
            f"{path} could not be written; name a file in a folder that exists and is writable"
        )
    return Cards(path)


class Cards:
    """The cards of one state file, open until `close`; any number of processes may have it open at once.

    Times are nanoseconds of the state's clock. Every method that changes something raises StateUnusableError where the file
    may only be read, and BadValueError for a card that is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = _load()
        self._mapping = ctypes.c_void_p()
        writable = ctypes.c_int()
        code = self._library.simgpu_open(
            str(path).encode(), ctypes.byref(self._mapping), ctypes.byref(writable)
        )
        if code != 0:
            reasons = {-1: "does not exist", -2: "has another layout"}
            raise StateUnusableError(
                f"{path} {reasons.get(code, 'could not be opened')};"
                " make it with: python -m sandbox.simgpu create --state FILE"
            )
        self.writable = bool(writable.value)
        _, self.count, self.virtual = self._clock()

    def close(self) -> None:
        """Give the file back; nothing else may be called afterwards."""
        if self._mapping.value is not None:
            self._library.simgpu_close(self._mapping)
            self._mapping = ctypes.c_void_p()

    def __enter__(self) -> Cards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def _clock(self) -> tuple[int, int, bool]:
        now, count, virtual = ctypes.c_uint64(), ctypes.c_uint32(), ctypes.c_int()
        self._call("simgpu_clock", ctypes.byref(now), ctypes.byref(count), ctypes.byref(virtual))
        return now.value, count.value, bool(virtual.value)

    def _call(self, function: str, *arguments: object) -> None:
        if self._mapping.value is None:
            raise StateUnusableError(f"{self.path} was closed; open it again")
        code = getattr(self._library, function)(self._mapping, *arguments)
        if code == -3:
            raise StateUnusableError(f"{self.path} may only be read by this user; run as its owner")
        if code == -4:
            raise BadValueError(f"card: {arguments[0]} is not there; this state has 0 to {self.count - 1}")
        if code == -6:
            raise BadValueError(
                f"a card has at most {MAX_FAULTS} faults and {MAX_PROCESSES} processes; clear some first"
            )
        if code == -8:
            raise EventsLostError(
                f"card {arguments[0]}: events from number {arguments[1]} on are overwritten"
            )
        if code == -5:
            raise BadValueError(f"{function.removeprefix('simgpu_')}: {arguments[1:]} is out of range")
        if code != 0:
            raise StateUnusableError(f"{self.path}: {function} could not be done; see that the file is whole")

    def _scope(self, card: int | None) -> int:
        if card is None:
            return _LIBRARY
        if not 0 <= card < self.count:
            raise BadValueError(f"card: {card} is not there; this state has 0 to {self.count - 1}")
        return card

    @property
    def now_ns(self) -> int:
        """The state's clock: CLOCK_BOOTTIME, or the virtual one."""
        return self._clock()[0]

    def advance(self, seconds: float = 0.0, *, nanoseconds: int = 0) -> int:
        """Move the virtual clock on; returns what it then shows.

        Raises:
            BadValueError: the clock is the machine's, or the time is negative.
        """
        span = round(seconds * NANOSECONDS) + nanoseconds
        if span < 0:
            raise BadValueError(f"seconds: {span / NANOSECONDS} is negative; a clock only moves on")
        if not self.virtual:
            raise BadValueError(
                "advance: these cards follow the machine's clock; create them with virtual=True"
            )
        self._call("simgpu_advance", span)
        return self.now_ns

    def set_load(self, card: int, load: float) -> None:
        """Set how busy a card is, 0 to 1, to a millionth."""
        if not 0 <= load <= 1:
            raise BadValueError(f"load: {load} is not a share; give 0 to 1")
        self._call("simgpu_set_load", self._scope(card), round(load * 1_000_000))

    def set_memory(self, card: int, used_bytes: int) -> None:
        """Set how much of a card's memory is used; `set_processes` sets it to what its processes use."""
        if used_bytes < 0:
            raise BadValueError(f"used_bytes: {used_bytes} is negative")
        self._call("simgpu_set_memory", self._scope(card), used_bytes)

    def set_processes(self, card: int, processes: Sequence[Process]) -> None:
        """Set which processes run on a card, at most 64."""
        raw = (_Process * max(1, len(processes)))()
        for entry, process in zip(raw, processes, strict=False):
            entry.pid = process.pid
            entry.memory_bytes = process.memory_bytes
            entry.instance = _WHOLE_CARD if process.instance is None else process.instance
        self._call("simgpu_set_processes", self._scope(card), raw, len(processes))

    def set_limit(self, card: int, watts: float) -> None:
        """Set a card's power limit as an administrator's tool would, also where this process is not root.

        Raises:
            BadValueError: outside the card's range.
        """
        self._scope(card)
        try:
            self._call("simgpu_set_limit", card, self._milliwatts("watts", watts))
        except BadValueError as error:
            raise BadValueError(f"watts: {watts} is outside the range of card {card}; see `show`") from error

    def set_second_limit(self, card: int, watts: float | None) -> None:
        """Set a limiter that NVML cannot change (the board's, a thermal one); `None` takes it away."""
        raw = 0 if watts is None else max(1, self._milliwatts("watts", watts))
        self._call("simgpu_set_second_limit", self._scope(card), raw)

    @staticmethod
    def _milliwatts(field: str, watts: float) -> int:
        if not 0 <= watts <= 4_000_000:
            raise BadValueError(f"{field}: {watts} is not a power in watts; give for example 250")
        return round(watts * 1000)

    def set_persistence(self, card: int, enabled: bool) -> None:
        """Set a card's persistence mode."""
        self._call("simgpu_set_persistence", self._scope(card), enabled)

    def reload_driver(self, card: int | None = None) -> None:
        """Reload the driver now: counters begin at 0, limits and clocks at their default, persistence mode is off.

        With a card, that one alone is reset.
        """
        self._call("simgpu_reload", self._scope(card))

    def fault(
        self,
        card: int | None,
        kind: Fault,
        start_ns: int | None = None,
        end_ns: int | None = None,
        *,
        calls: Calls | None = None,
        milliseconds: int = 0,
        watts: float = 0.0,
        joules: float = 0.0,
        share: float = 0.0,
    ) -> None:
        """Let something be wrong with a card (`None`: with every card and the library itself) from start to end.

        Without a start it begins now, without an end it lasts until `clear_faults`. `calls` names what it concerns
        (default: `Calls.ENERGY` for NOT_SUPPORTED, `Calls.SET` for NO_PERMISSION, everything that makes sense for the
        others). `milliseconds` is how long each call of SLOW takes, and after how much real time a call of HANG goes on
        (0: only at the window's end). `watts` is what GARBAGE reads, `joules` what SHIFTED adds to
        the counter (modulo 2^64 mJ), `share` the part (0 to 1) that SHARE counts of what is used from its start on.

        Raises:
            BadValueError: the window is empty, a needed argument is missing, or the card has 32 faults already.
        """
        scope = self._scope(card)
        start = self.now_ns if start_ns is None else start_ns
        end = FOREVER if end_ns is None else end_ns
        if not 0 <= start < end <= FOREVER:
            raise BadValueError(f"end_ns: {end} is not after start_ns, {start}")
        if kind is Fault.SLOW and milliseconds <= 0:
            raise BadValueError(f"milliseconds: {milliseconds}; say how long each slow call takes")
        if kind is Fault.NOT_LOADED and card is not None:
            raise BadValueError(f"card: {card}; NVML as a whole is loaded or not, give None")
        number, default, code = _FAULTS[kind]
        parameter = code or milliseconds
        if kind is Fault.GARBAGE:
            parameter = self._milliwatts("watts", watts)
        if kind is Fault.SHIFTED:
            parameter = round(joules * 1000) % (1 << 64)
        if kind is Fault.SHARE:
            if not 0 <= share <= 1:
                raise BadValueError(f"share: {share} is not between 0 and 1")
            parameter = round(share * 1_000_000)
        self._call(
            "simgpu_add_fault", scope, number, int(default if calls is None else calls), start, end, parameter
        )

    def clear_faults(self, card: int | None = None) -> None:
        """Take away a card's faults, or without a card every fault of the library and of all cards."""
        self._call("simgpu_clear_faults", self._scope(card))

    def read_card(self, card: int) -> Reading:
        """One card as it truly is now."""
        raw = _Reading()
        self._call("simgpu_read", self._scope(card), ctypes.byref(raw))
        return Reading(
            at_ns=raw.now_ns,
            profile=list(read_profiles())[raw.profile],
            uuid=raw.uuid.decode(),
            serial=raw.serial.decode(),
            energy_pj=(raw.energy_high << 64) + raw.energy_low,
            counter_mj=raw.counter_mj,
            load=raw.load_ppm / 1_000_000,
            watts=raw.draw_mw / 1000,
            average_watts=raw.average_mw / 1000,
            limit_watts=raw.limit_mw / 1000,
            second_limit_watts=raw.second_limit_mw / 1000 if raw.second_limit_mw else None,
            enforced_watts=raw.enforced_mw / 1000,
            clock_mhz=raw.clock_mhz,
            reasons=raw.reasons,
            throughput=raw.throughput,
            memory_bytes=raw.memory_bytes,
            persistence=bool(raw.persistence),
            mig=bool(raw.mig),
            faults=raw.fault_count,
            slow_calls=raw.slow_calls,
            slow_ms=raw.slow_ms,
            events=raw.event_count,
        )

    def slowdown(self, card: int) -> float:
        """How fast work on this card goes, relative to the highest clock: above 0, at most 1.

        Of an idle card: how fast a full load would go.
        """
        return self.read_card(card).throughput

    def read_instances(self, card: int) -> list[Instance]:
        """The MIG instances of a card, in the order they were asked for."""
        found: list[Instance] = []
        uuid, profile = ctypes.create_string_buffer(48), ctypes.create_string_buffer(16)
        while self._library.simgpu_instance(self._mapping, self._scope(card), len(found), uuid, profile) == 0:
            found.append(Instance(uuid.value.decode(), profile.value.decode()))
        return found

    def drain_events(self, card: int, since: int = 0) -> tuple[list[Event], int]:
        """Every change of a card's draw from event number `since` on, and the number to ask for next.

        Event 0 is the draw the card was made with.

        Raises:
            EventsLostError: some of them are overwritten already; a card remembers its last 8000.
        """
        found: list[Event] = []
        raw = (_Event * 1024)()
        written = ctypes.c_uint32(1024)
        while written.value == 1024:
            self._call(
                "simgpu_events", self._scope(card), since + len(found), raw, 1024, ctypes.byref(written)
            )
            found.extend(Event(entry.at_ns, entry.draw_mw) for entry in raw[: written.value])
        return found, since + len(found)


def open(path: Path) -> Cards:  # noqa: A001 - the counterpart of `create`, always written as cards.open
    """Open a state file that is there.

    Raises:
        StateUnusableError: it is absent, of another layout, or not readable.
    """
    return Cards(path)
