"""GPUs that are allocated and were never read: all of their time is missing, from the first second on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from greentrain.energy.account import NodeAccount
from greentrain.energy.attribution import Allocated
from greentrain.energy.cards import Make
from greentrain.energy.intervals import CardReading
from greentrain.energy.report import report_pods
from greentrain.quantities import Millijoules, Milliwatts, format_unix_time

WALL = 1_750_000_000.0
WATT = 1000


def read(joules: int) -> CardReading:
    return CardReading(Millijoules(joules * 1000), Milliwatts(300 * WATT), busy=True)


class Node:
    """A node of two cards of 300 W, of which a table says what is read and who has them."""

    def __init__(self) -> None:
        self.account = NodeAccount("journal")
        self.account.note_cards({u: Make("V100", Milliwatts(300 * WATT)) for u in ("GPU-a", "GPU-b")})
        self.now = 100.0

    def look(
        self,
        readings: Mapping[str, CardReading],
        held: Mapping[str, Sequence[str]],
        boot: str = "boot",
        seconds: float = 1.0,
    ) -> None:
        """One look, some time after the last."""
        self.now += seconds
        for pod in {p for pods in held.values() for p in pods}:
            self.account.open(pod, namespace="team", name=pod, uid=pod)
        cards = {u: [Allocated(p) for p in held.get(u, ())] for u in {*held, *self.account.cards, *readings}}
        self.account.advance(readings, cards, at=self.now, wall=WALL + self.now, boot=boot)

    def entry(self, pod: str = "p") -> tuple[int, int, int]:
        """Joules, missing seconds and unread GPUs as reported."""
        found = next(e for e in report_pods(self.account, at=self.now) if e.uid == pod)
        return found.gpu_joules, found.missing_seconds, found.unread_gpus


def test_its_time_is_missing_from_the_first_second_on() -> None:
    node = Node()
    for second in range(5):
        node.look({}, {"GPU-a": ["p"]})
        assert node.entry() == (0, second, 1)
    assert node.account.pods["p"].missing_most == 4 * 300 * 1000
    (entry,) = report_pods(node.account, at=node.now)
    assert (entry.first_reading, entry.last_reading, entry.read_until, entry.buckets.joules) == (
        None,
        None,
        None,
        (),
    )


def test_a_pod_of_two_gpus_is_read_only_while_both_are() -> None:
    node = Node()
    for second in range(5):
        node.look({"GPU-a": read(300 * second)}, {"GPU-a": ["p"], "GPU-b": ["p"]})
    assert node.entry() == (1200, 4, 1)
    for second in range(5, 9):
        node.look(
            {"GPU-a": read(300 * second), "GPU-b": read(300 * second)}, {"GPU-a": ["p"], "GPU-b": ["p"]}
        )
    # The second's first reading closes no gap: what its counter showed before is not known.
    assert node.entry() == (2400 + 900, 5, 0)


def test_until_when_all_were_read_is_reported_while_one_is_lost() -> None:
    node = Node()
    both = {"GPU-a": ["p"], "GPU-b": ["p"]}
    for second in range(3):
        node.look({u: read(300 * second) for u in both}, both)
    lost = WALL + node.now
    entry = report_pods(node.account, at=node.now)[0]
    assert (entry.last_reading, entry.read_until) == (format_unix_time(lost), None)
    for second in range(3, 9):
        node.look({"GPU-a": read(300 * second)}, both)
    entry = report_pods(node.account, at=node.now)[0]
    assert (entry.last_reading, entry.read_until) == (
        format_unix_time(WALL + node.now),
        format_unix_time(lost),
    )
    assert (entry.missing_seconds, entry.unread_gpus) == (0, 0)
    node.look({u: read(300 * 9) for u in both}, both)
    entry = report_pods(node.account, at=node.now)[0]
    assert (entry.gpu_joules, entry.read_until, entry.missing_seconds) == (2 * 300 * 9, None, 0)


def test_a_card_that_was_lost_before_its_pod_began_says_so_by_the_time_of_its_last_reading() -> None:
    node = Node()
    node.look({"GPU-a": read(0)}, {})
    lost = WALL + node.now
    for _ in range(5):
        node.look({}, {"GPU-a": ["p"]})
    entry = report_pods(node.account, at=node.now)[0]
    assert (entry.last_reading, entry.read_until, entry.unread_gpus) == (None, format_unix_time(lost), 1)
    # Its counter went on: what it used is known then, and nothing is missing.
    node.look({"GPU-a": read(1200)}, {"GPU-a": ["p"]})
    entry = report_pods(node.account, at=node.now)[0]
    assert (entry.read_until, entry.unread_gpus, entry.missing_seconds) == (None, 0, 0)
    assert entry.gpu_joules >= 900


@pytest.mark.parametrize("device", ["GPU-away", "gpu0", "team/claim/gpu-0"])
def test_a_device_that_no_driver_lists_is_forgotten_when_its_pod_has_ended(device: str) -> None:
    node = Node()
    for _ in range(5):
        node.look({}, {device: ["p"]})
    node.account.close("p", wall=WALL + node.now)
    node.look({}, {device: []})
    # Half of the last second, as for any card.
    assert node.account.pods["p"].missing_seconds == 4.5
    assert not node.account.awaits("p")
    assert report_pods(node.account)[0].closed
    node.look({}, {})
    assert set(node.account.cards) == {"GPU-a", "GPU-b"}
    # The highest limit of the cards that are known stands for its own.
    assert node.account.pods["p"].missing_most == 4.5 * 300 * 1000


def test_after_a_reboot_it_is_missing_since_the_machine_started() -> None:
    node = Node()
    for _ in range(3):
        node.look({}, {"GPU-a": ["p"]})
    node.now = 20.0
    node.look({}, {"GPU-a": ["q"]}, boot="next")
    assert node.entry("p")[1] == 2
    # When it began after the start is not known.
    assert 1 <= node.entry("q")[1] <= 21
    assert node.entry("q")[2] == 1


def test_no_second_is_lost_where_the_agent_begins_anew() -> None:
    node = Node()
    for _ in range(3):
        node.look({}, {"GPU-a": ["p"]})
    node.account = NodeAccount.from_json(node.account.to_json())
    node.look({}, {"GPU-a": ["p"]}, seconds=30.0)
    assert node.entry() == (0, 32, 1)
    assert node.account.pods["p"].missing_most == 32 * 300 * 1000


def test_a_card_without_a_pod_that_was_never_read_is_nothing_to_miss() -> None:
    node = Node()
    for _ in range(3):
        node.look({}, {})
    node.look({"GPU-a": read(9000)}, {})
    node.look({"GPU-a": read(9300)}, {})
    assert node.account.cards["GPU-a"].measured == 300_000
    assert node.account.unattributed == 300_000
