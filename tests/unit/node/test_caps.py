"""One card's power limit: every case of the decision, as a table."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from greentrain.api.nodepower import IN_FORCE, CapReason, PowerLimits, resolve_cap
from greentrain.node.caps import (
    CONTEST_SECONDS,
    Ask,
    Entry,
    Hindrance,
    Keep,
    Note,
    SetLimit,
    Step,
    Verdict,
    decide_card,
    find_target,
    rehearse,
)
from greentrain.quantities import Milliwatts, PowerCap, parse_power_cap, typed

SESSION = "boot-1/load-1"
NOW = 5000.0
PAUSED = Hindrance("Paused", "the driver is being replaced")


def card(
    limit: int | None = 300_000,
    *,
    enforced: int | None = None,
    default: int | None = 300_000,
    least: int | None = 100_000,
    most: int | None = 350_000,
) -> PowerLimits:
    """A card that reads this limit."""
    return PowerLimits(
        min_milliwatts=least,
        default_milliwatts=default,
        max_milliwatts=most,
        set_milliwatts=limit,
        enforced_milliwatts=limit if enforced is None else enforced,
    )


def ask_for(cap: str, pod: str = "pod-1") -> Ask:
    return Ask(pod, parse_power_cap(cap))


def journal(
    prior: int,
    written: int | None = None,
    pending: int | None = None,
    *,
    changes: tuple[float, ...] = (),
    contested: str = "",
) -> Entry:
    return Entry(
        SESSION, Milliwatts(prior), typed(Milliwatts, written), typed(Milliwatts, pending), changes, contested
    )


def decide(
    limits: PowerLimits, entry: Entry | None, cap: str | None, hindrance: Hindrance | None = None
) -> Verdict:
    ask = None if cap is None else ask_for(cap)
    return decide_card(limits, entry, ask, session=SESSION, now=NOW, hindrance=hindrance)


CAPPED = journal(300_000, 250_000)
AGO = (NOW - 20, NOW - 10)
"""Two changes by others of late."""
QUARREL = (
    "another program changed its limit 3 times within 5 min; it is left at 275W. When that has stopped, change "
    "spec.power.cap to try again"
)


# -- how a cap stands ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "prior", "cap", "reason", "message"),
    [
        (card(250_000), 300_000, "250W", "Capped", "its limit is 250W"),
        (card(250_000), 300_000, "0.25kW", "Capped", "its limit is 250W"),
        (card(210_000), 300_000, "70%", "Capped", "its limit is 210W"),
        (card(250_000, enforced=200_000), 300_000, "250W", "Capped", "its limit is 250W"),
        (card(250_000), 300_000, "250.4W", "Capped", "its limit is 250.4W"),
        (card(250_000, enforced=250_999), 300_000, "250W", "Capped", "its limit is 250W"),
        (card(300_000), 300_000, "300.5W", "Capped", "its limit is 300W"),
        (
            card(100_000),
            300_000,
            "50W",
            "Clamped",
            "its limit is 100W: 50W is below the lowest it can have, 100W",
        ),
        (
            card(100_000),
            300_000,
            "30%",
            "Clamped",
            "its limit is 100W: 30% (90W) is below the lowest it can have, 100W",
        ),
        (
            card(350_000),
            350_000,
            "400W",
            "Clamped",
            "its limit is 350W: 400W is above the highest it can have, 350W",
        ),
        (
            card(200_000),
            200_000,
            "250W",
            "PreviousLower",
            "its limit is 200W, as it was before: a job does not raise it to 250W",
        ),
        (
            card(200_000),
            200_000,
            "100%",
            "PreviousLower",
            "its limit is 200W, as it was before: a job does not raise it to 100% (300W)",
        ),
        (
            card(200_000),
            200_000,
            "400W",  # above the highest too, but that is not why
            "PreviousLower",
            "its limit is 200W, as it was before: a job does not raise it to 400W",
        ),
        (card(300_000), 300_000, "250W", "Applying", "its limit in force is 300W, 250W is due"),
        (
            card(250_000, enforced=251_000),
            300_000,
            "250W",
            "Applying",
            "its limit in force is 251W, 250W is due",
        ),
    ],
)
def test_a_cap_is_in_force_where_the_limit_read_back_is_not_above_the_one_due(
    limits: PowerLimits, prior: int, cap: str, reason: CapReason, message: str
) -> None:
    assert limits.set_milliwatts is not None
    entry = journal(prior, limits.set_milliwatts) if limits.set_milliwatts != prior else None
    verdict = decide(limits, entry, cap)
    assert (verdict.reason, verdict.message) == (reason, message)
    assert not (verdict.steps and verdict.reason in IN_FORCE)


def test_a_card_that_does_not_tell_the_limit_in_force_is_taken_at_the_one_that_is_set() -> None:
    limits = card(250_000).model_copy(update={"enforced_milliwatts": None})
    assert decide(limits, CAPPED, "250W").reason == "Capped"
    assert decide(limits, CAPPED, "200W").message == "its limit in force is 250W, 200W is due"


@pytest.mark.parametrize(
    ("limits", "cap", "hindrance", "reason", "message"),
    [
        (card(None), "250W", None, "Unsupported", "its driver reports no power limit, so none can be kept"),
        (
            card(default=None),
            "70%",
            None,
            "Unsupported",
            "its driver reports no default limit, of which 70% could be a share: ask for watts",
        ),
        (card(), "250W", PAUSED, "Paused", "the driver is being replaced"),
        (card(default=None), "70%", PAUSED, "Paused", "the driver is being replaced"),
        *(
            (card(), "250W", Hindrance(reason, "so it is"), reason, "so it is")
            for reason in get_args(CapReason)
            if reason not in IN_FORCE
        ),
    ],
)
def test_what_hinders_a_cap_is_said_and_nothing_is_written(
    limits: PowerLimits, cap: str, hindrance: Hindrance | None, reason: CapReason, message: str
) -> None:
    verdict = decide(limits, None, cap, hindrance)
    assert (verdict.reason, verdict.message, verdict.steps) == (reason, message, ())


@pytest.mark.parametrize(
    ("asked", "prior", "least", "due"),
    [
        (250_000, 300_000, 100_000, 250_000),
        (50_000, 300_000, 100_000, 100_000),
        (400_000, 300_000, 100_000, 300_000),
        (250_000, 200_000, 100_000, 200_000),
        (50_000, 300_000, None, 50_000),
    ],
)
def test_the_limit_due_is_what_is_asked_within_the_range_and_never_above_the_prior(
    asked: int, prior: int, least: int | None, due: int
) -> None:
    assert find_target(Milliwatts(asked), Milliwatts(prior), card(least=least)) == due


@pytest.mark.parametrize(
    ("cap", "default", "milliwatts"),
    [
        (PowerCap(milliwatts=Milliwatts(250_400)), 300_000, 250_400),
        (PowerCap(milliwatts=Milliwatts(250_400)), None, 250_400),
        (PowerCap(percent=70), 300_000, 210_000),
        (PowerCap(percent=100), 300_000, 300_000),
        (PowerCap(percent=33), 300_010, 99_003),  # what is left of a milliwatt is not asked for
        (PowerCap(percent=70), None, None),
        (PowerCap(), 300_000, None),
    ],
)
def test_a_share_is_of_the_default_limit_and_not_of_the_one_that_is_set(
    cap: PowerCap, default: int | None, milliwatts: int | None
) -> None:
    assert resolve_cap(cap, card(200_000, default=default)) == milliwatts


# -- what is done ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "entry", "cap", "steps"),
    [
        # A card that is free, as it should be, or not asked for anything that would lower it.
        (300_000, None, None, ()),
        (300_000, None, "300W", ()),
        (200_000, None, "250W", ()),
        (250_000, CAPPED, "250W", ()),
        (250_900, journal(300_000, 250_900), "250W", ()),
        # A cap begins, changes, is written once more.
        (300_000, None, "250W", (Keep(journal(300_000, pending=250_000)), SetLimit(Milliwatts(250_000)))),
        (300_000, None, "50W", (Keep(journal(300_000, pending=100_000)), SetLimit(Milliwatts(100_000)))),
        (250_000, CAPPED, "200W", (Keep(journal(300_000, 250_000, 200_000)), SetLimit(Milliwatts(200_000)))),
        (250_000, CAPPED, "280W", (Keep(journal(300_000, 250_000, 280_000)), SetLimit(Milliwatts(280_000)))),
        (250_000, CAPPED, "990W", (Keep(journal(300_000, 250_000, 300_000)), SetLimit(Milliwatts(300_000)))),
        (300_000, journal(300_000, pending=250_000), "250W", (SetLimit(Milliwatts(250_000)),)),
        # What was pending has been set, with the driver's rounding, or it has not.
        (250_000, journal(300_000, pending=250_000), "250W", (Keep(CAPPED),)),
        (250_000, journal(300_000, pending=250_400), "250.4W", (Keep(CAPPED),)),
        (200_000, journal(300_000, 250_000, 200_000), "200W", (Keep(journal(300_000, 200_000)),)),
        (250_000, journal(300_000, 250_000, 200_000), "250W", (Keep(CAPPED),)),
        (300_000, journal(300_000, pending=250_000), "300W", (Keep(journal(300_000)),)),
        (
            250_000,
            journal(300_000, pending=250_000),
            "200W",
            (Keep(journal(300_000, 250_000, 200_000)), SetLimit(Milliwatts(200_000))),
        ),
    ],
)
def test_the_journal_knows_of_every_write_before_it_is_made(
    limit: int, entry: Entry | None, cap: str | None, steps: tuple[Step, ...]
) -> None:
    verdict = decide(card(limit), entry, cap)
    assert (verdict.steps, verdict.note) == (steps, None)


@pytest.mark.parametrize(
    ("limit", "entry", "note"),
    [
        (300_000, journal(300_000, pending=250_000), None),  # it was never written
        (300_000, CAPPED, Note("Restored", Milliwatts(300_000))),
        (300_000, journal(300_000, 250_000, 200_000), Note("Restored", Milliwatts(300_000))),
        (275_000, CAPPED, Note("Left", Milliwatts(275_000))),
        (350_000, CAPPED, Note("Left", Milliwatts(350_000))),
        (275_000, journal(300_000, pending=250_000), Note("Left", Milliwatts(275_000))),
        (275_000, journal(300_000, changes=AGO), Note("Left", Milliwatts(275_000))),
        (300_000, journal(300_000, contested="pod-1:250W"), None),
        (275_000, journal(300_000, contested="pod-1:250W"), Note("Left", Milliwatts(275_000))),
    ],
)
def test_a_card_that_has_its_prior_or_somebody_elses_limit_is_let_go(
    limit: int, entry: Entry, note: Note | None
) -> None:
    verdict = decide(card(limit), entry, None)
    assert (verdict.steps, verdict.note) == ((Keep(None),), note)


@pytest.mark.parametrize(
    ("limit", "entry"),
    [
        (250_000, CAPPED),
        (250_900, CAPPED),
        (250_000, journal(300_000, pending=250_000)),
        (200_000, journal(300_000, 250_000, 200_000)),
        (250_000, journal(300_000, 250_000, 200_000)),
        (250_000, journal(300_000, 250_000, changes=AGO)),
    ],
)
def test_what_we_set_is_given_back_whether_it_was_seen_to_be_set_or_not(limit: int, entry: Entry) -> None:
    for verdict in (decide(card(limit), entry, None), decide(card(limit), entry, "250W", PAUSED)):
        assert verdict.steps[-1] == SetLimit(Milliwatts(300_000))
        assert verdict.note is None


def test_giving_back_stands_in_the_journal_so_that_it_is_not_taken_for_somebody_elses_change() -> None:
    entry = journal(300_000, 250_000, 200_000)
    first, *_ = decide(card(200_000), entry, None).steps
    assert first == Keep(journal(300_000, 200_000, 300_000))
    assert isinstance(first, Keep)
    assert decide(card(200_000), first.entry, None).steps == (SetLimit(Milliwatts(300_000)),)
    # Killed after the write; the next agent is asked for a cap again.
    again = decide(card(300_000), first.entry, "250W")
    assert again.note is None
    assert again.steps == (Keep(journal(300_000, 300_000, 250_000)), SetLimit(Milliwatts(250_000)))


def test_a_limit_hardly_below_the_prior_is_the_prior_lest_it_is_taken_for_given_back() -> None:
    verdict = decide(card(250_000), CAPPED, "299.5W")
    assert verdict.target == 300_000
    assert SetLimit(Milliwatts(300_000)) in verdict.steps


# -- somebody else ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "entry", "cap", "steps"),
    [
        # Lowered below the cap: nothing is to be written; raised: the cap stays.
        (200_000, CAPPED, "250W", (Keep(journal(200_000, changes=(NOW,))),)),
        (
            350_000,
            CAPPED,
            "250W",
            (Keep(journal(350_000, pending=250_000, changes=(NOW,))), SetLimit(Milliwatts(250_000))),
        ),
        (
            275_000,
            CAPPED,
            "250W",
            (Keep(journal(275_000, pending=250_000, changes=(NOW,))), SetLimit(Milliwatts(250_000))),
        ),
        # Set back to what was there before: the same.
        (
            300_000,
            CAPPED,
            "250W",
            (Keep(journal(300_000, pending=250_000, changes=(NOW,))), SetLimit(Milliwatts(250_000))),
        ),
        (275_000, journal(300_000, pending=250_000), "290W", (Keep(journal(275_000, changes=(NOW,))),)),
        # Changes that are long past are forgotten.
        (
            275_000,
            journal(300_000, 250_000, changes=(NOW - CONTEST_SECONDS, NOW - 10)),
            "250W",
            (Keep(journal(275_000, pending=250_000, changes=(NOW - 10, NOW))), SetLimit(Milliwatts(250_000))),
        ),
    ],
)
def test_what_somebody_else_sets_is_the_new_prior_and_the_cap_follows(
    limit: int, entry: Entry, cap: str, steps: tuple[Step, ...]
) -> None:
    verdict = decide(card(limit), entry, cap)
    assert (verdict.steps, verdict.note) == (steps, Note("Foreign", Milliwatts(limit)))


@pytest.mark.parametrize("ago", [AGO, (NOW - CONTEST_SECONDS + 1, NOW - 10)])
def test_the_third_change_within_five_minutes_ends_the_writing(ago: tuple[float, ...]) -> None:
    verdict = decide(card(275_000), journal(300_000, 250_000, changes=ago), "250W")
    kept = journal(275_000, changes=(*ago, NOW), contested="pod-1:250W")
    assert verdict == Verdict(
        (Keep(kept),), Milliwatts(250_000), None, "Contested", QUARREL, Note("Contested", Milliwatts(275_000))
    )
    assert decide(card(275_000), kept, "250W") == Verdict(
        asked=Milliwatts(250_000), reason="Contested", message=QUARREL
    )
    elsewhere = decide(card(290_000), kept, "250W")
    assert (elsewhere.steps, elsewhere.reason) == ((), "Contested")


@pytest.mark.parametrize(
    ("ask", "steps"),
    [
        (ask_for("250W"), ()),
        (ask_for("200W"), (Keep(journal(275_000, pending=200_000)), SetLimit(Milliwatts(200_000)))),
        (ask_for("250W", "pod-2"), (Keep(journal(275_000, pending=250_000)), SetLimit(Milliwatts(250_000)))),
        (ask_for("300W"), (Keep(None),)),
        (None, (Keep(None),)),
    ],
)
def test_a_contested_card_waits_for_another_ask(ask: Ask | None, steps: tuple[Step, ...]) -> None:
    contested = journal(275_000, changes=(*AGO, NOW), contested="pod-1:250W")
    verdict = decide_card(card(275_000), contested, ask, session=SESSION, now=NOW)
    assert verdict.steps == steps


@pytest.mark.parametrize(
    "entry",
    [
        journal(275_000, changes=(*AGO, NOW), contested="pod-1:250W"),
        journal(275_000, changes=AGO),
    ],
)
def test_a_hindrance_does_not_make_a_quarrel_forgotten(entry: Entry) -> None:
    assert decide(card(275_000), entry, "250W", PAUSED) == Verdict(
        asked=Milliwatts(250_000), reason="Paused", message=PAUSED.message
    )
    moved = decide(card(290_000), entry, "250W", PAUSED)
    assert (moved.steps, moved.note) == ((Keep(replace(entry, prior=Milliwatts(290_000))),), None)
    given = decide(card(300_000), journal(300_000, 250_000, changes=AGO), "250W", PAUSED)
    assert (given.steps, given.note) == (
        (Keep(journal(300_000, changes=AGO)),),
        Note("Restored", Milliwatts(300_000)),
    )


# -- other sessions, other cards -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "cap", "steps"),
    [
        (300_000, None, (Keep(None),)),
        (250_000, None, (Keep(None),)),  # whoever set it, it was not we
        (300_000, "300W", (Keep(None),)),
        (300_000, "250W", (Keep(journal(300_000, pending=250_000)), SetLimit(Milliwatts(250_000)))),
        (None, "250W", (Keep(None),)),
    ],
)
@pytest.mark.parametrize("contested", ["", "pod-1:250W"])
def test_after_a_reboot_or_with_a_new_driver_the_journal_is_void(
    limit: int | None, cap: str | None, steps: tuple[Step, ...], contested: str
) -> None:
    old = replace(CAPPED, session="boot-1/load-0", contested=contested)
    verdict = decide(card(limit), old, cap)
    assert (verdict.steps, verdict.note) == (steps, None)


@pytest.mark.parametrize("cap", [None, "250W"])
def test_a_card_that_tells_no_limit_now_is_neither_touched_nor_forgotten(cap: str | None) -> None:
    verdict = decide(card(None), CAPPED, cap)
    assert (verdict.steps, verdict.reason) == ((), "Unsupported")


def test_a_share_that_can_no_longer_be_told_ends_the_cap() -> None:
    verdict = decide(card(210_000, default=None), journal(300_000, 210_000), "70%")
    assert (verdict.steps[-1], verdict.reason) == (SetLimit(Milliwatts(300_000)), "Unsupported")


# -- the dry run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "cap", "reason", "message"),
    [
        (300_000, "250W", "DryRun", "a dry run: its limit, which is 300W now, would be set to 250W"),
        (300_000, "300W", "Capped", "its limit is 300W"),
        (
            200_000,
            "250W",
            "PreviousLower",
            "its limit is 200W, as it was before: a job does not raise it to 250W",
        ),
    ],
)
def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    limit: int, cap: str, reason: CapReason, message: str
) -> None:
    verdict = rehearse(decide(card(limit), None, cap), Milliwatts(limit))
    assert (verdict.steps, verdict.note) == ((), None)
    assert (verdict.reason, verdict.message) == (reason, message)


def test_a_dry_run_of_a_card_whose_limit_was_not_read_says_what_it_would_set() -> None:
    verdict = rehearse(decide(card(), None, "250W"), None)
    assert verdict.message == "a dry run: its limit would be set to 250W"
