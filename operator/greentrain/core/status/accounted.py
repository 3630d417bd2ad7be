"""The account of a finished job in one message, for its event and the log: both outlive the job, whose status does not.

It is closed once, when every final report is in, or when a missing one is given up. A node that returns later may still
change the figures of the status; that makes no second event.
"""

from __future__ import annotations

from collections.abc import Iterable

from greentrain.api.runtime import clean_line
from greentrain.api.status import EmissionsStatus, EnergyStatus, GreenTrainingJobStatus
from greentrain.core.limits import shorten
from greentrain.quantities import Joules, Micrograms, Thousandths, format_emissions, format_energy, format_pue

NAMED = 4
"""So many zones, sources or values of PUE are named, the others are counted: an event's message has 1,024 characters."""

NAME_MAX = 48
"""Longest name that is quoted, in characters."""


def was_accounted(energy: EnergyStatus | None) -> bool:
    """Whether the account is closed by this status; a version that did not record this has stored `final` alone."""
    return energy is not None and (energy.accounted or (energy.final and bool(energy.used)))


def describe_account(status: GreenTrainingJobStatus, *, uid: str) -> str:
    """What the job used and emitted, how that was counted, and what is missing; `uid` is the job's."""
    energy = status.energy or EnergyStatus()
    used, error = Joules(energy.used_joules), Joules(energy.error_joules)
    amount = f"energy {format_energy(used)} ± {format_energy(error)} at 95 % confidence, scope {energy.scope}"
    parts = (
        f"the job's account is closed: {amount}",
        _describe_emissions(status),
        _describe_gaps(energy),
        f"job UID {_quote(uid)}" if uid else "",
    )
    return "; ".join(part for part in parts if part)


def _describe_emissions(status: GreenTrainingJobStatus) -> str:
    emissions = status.emissions
    if emissions is None or not emissions.total:
        return "emissions are not counted, because no source of intensity is set"
    zones = emissions.zones or ((emissions.zone,) if emissions.zone else ())
    sources = [
        _quote(share.source) + (f" ({share.percent} %)" if len(emissions.shares) > 1 else "")
        for share in emissions.shares
    ]
    words = [
        f"emissions {format_emissions(Micrograms(emissions.total_micrograms))} of CO2 equivalent",
        _list("zone", map(_quote, zones)),
        _list("source", sources),
        f"basis {emissions.basis}",
        f"scope {emissions.boundary}",
        _list("PUE", _find_pues(status, emissions)),
    ]
    if emissions.without_joules:
        without = format_energy(Joules(emissions.without_joules))
        words.append(f"without {without} of the energy, for which there is no intensity")
    return ", ".join(words)


def _find_pues(status: GreenTrainingJobStatus, emissions: EmissionsStatus) -> list[str]:
    """The PUE of each attempt, without repetitions; where none recorded one, the job's."""
    known = (a.pue_thousandths for a in status.attempts)
    recorded = dict.fromkeys(format_pue(Thousandths(pue)) for pue in known if pue is not None)
    return list(recorded) or [emissions.pue or "1"]


def _describe_gaps(energy: EnergyStatus) -> str:
    missing = energy.lost_pods + sum(not pod.final for pod in energy.pods)
    if missing:
        text = f"final reports of pods that are missing: {missing}, what they used after their last report is not counted"
    elif energy.final:
        text = "every final report is in"
    else:
        text = "a pod of the job had not ended by then"
    if energy.missing_seconds:
        text += f"; {energy.missing_seconds} s of its pods' time with a GPU were not read and are in no sum"
    return text


def _list(word: str, names: Iterable[str]) -> str:
    """A word and the first few of these names, such as `zone DE, FR and 3 more`; `no zone` where there is none."""
    found = list(names)
    if not found:
        return f"no {word}"
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{word} {', '.join(found[:NAMED])}{more}"


def _quote(name: str) -> str:
    return shorten(clean_line(name), NAME_MAX)
