"""The overshoot bound: the most by which a budget can be exceeded, computed before an attempt starts.

bound = power limits of all its GPUs × the longest time from the moment the budget is spent to the end of the last pod. No
program can exceed the limits, and the time does not depend on the program. A stop begins in one of three ways:

- a node's report shows that the budget is spent;
- a node's report is overdue: from then on the operator charges each GPU at its power limit;
- the operator is silent: an agent acts when an allowance is spent and the silence has lasted `SILENCE_SECONDS`.

The pods' grace period follows. The operator may fail just when an agent returns, so the bound contains both times.
"""

from __future__ import annotations

from math import ceil

from greentrain.api.lease import OPERATOR_SILENT_SECONDS, RENEW_SECONDS, UNATTENDED_SECONDS
from greentrain.api.status import AttemptStatus, EmissionsStatus
from greentrain.core.books.account import Account
from greentrain.core.books.charges import DEFAULT_REPORT_SECONDS, overdue_seconds
from greentrain.core.books.emissions import begin_emissions, embodied_of, emissions_of, find_highest
from greentrain.core.seen.intensities import ALLOWANCE_SECONDS
from greentrain.core.seen.snapshot import Fleet
from greentrain.quantities import THOUSANDTHS, Intensity, Joules, Milliwatts, Thousandths, add, energy_of

REPORTS_WAIT_SECONDS = 2
"""The most seconds that a node's report waits for the job's next pass. Reports that come meanwhile are taken together, so that
a job on a thousand nodes does not cost a pass for each. Nothing but reports waits for this."""

REACTION_SECONDS = 5 + REPORTS_WAIT_SECONDS
"""Seconds from a report to the SIGTERM of every pod: the wait for other reports, a pass, a status write, deletions, the
kubelets' next sync."""


SILENCE_SECONDS = OPERATOR_SILENT_SECONDS + UNATTENDED_SECONDS + RENEW_SECONDS
"""How long, in seconds, a job may be without an operator before the agents of its nodes act."""


def stop_seconds(report_seconds: int | None, grace_seconds: int) -> int:
    """The most seconds from one report until the next one has come and, if that stops the job, its pods have ended."""
    return overdue_seconds(report_seconds) + REACTION_SECONDS + grace_seconds


def worst_seconds(report_seconds: int | None, grace_seconds: int) -> int:
    """The most seconds from the moment a budget is spent until the last pod has ended, whatever fails meanwhile.

    A silent agent is noticed when its report is overdue. If the operator fails just when that agent returns, the agent acts
    only after the operator's silence. Before the operator failed, its pass over the job may have hung until just before the
    renewal that would have named the job.
    """
    return stop_seconds(report_seconds, grace_seconds) + ceil(SILENCE_SECONDS) + 1


def announce(
    attempt: AttemptStatus, *, gpus: int, grace_seconds: int, fleet: Fleet, pue: Thousandths
) -> AttemptStatus:
    """The attempt with its overshoot bound, as stored before it starts.

    None without GPUs: they alone are bounded. None where no node has reported its limits.
    """
    worst = worst_seconds(fleet.report_seconds, grace_seconds)
    limit = fleet.limit_milliwatts
    return attempt.model_copy(
        update={
            "gpus": gpus,
            "pue_thousandths": pue,
            "gpu_limit_milliwatts": limit,
            "report_seconds": fleet.report_seconds or DEFAULT_REPORT_SECONDS,
            "stop_seconds": stop_seconds(fleet.report_seconds, grace_seconds),
            "worst_seconds": worst,
            "overshoot_bound_joules": (
                energy_of(Milliwatts(limit * gpus), worst) if limit is not None and gpus else None
            ),
        }
    )


def raise_bound(attempt: AttemptStatus, fleet: Fleet) -> AttemptStatus:
    """The attempt with a higher bound, where its pods run on nodes with higher figures than the bound was computed from.

    It was computed before the pods' nodes were known. It is never lowered.
    """
    if (
        not attempt.gpus or attempt.report_seconds is None
    ):  # an attempt that an older operator began keeps its bound
        return attempt
    known = [x for x in (attempt.gpu_limit_milliwatts, fleet.limit_milliwatts) if x is not None]
    limit = max(known, default=None)
    every = max(attempt.report_seconds, fleet.report_seconds or 0)
    if (limit, every) == (attempt.gpu_limit_milliwatts, attempt.report_seconds):
        return attempt
    later = overdue_seconds(every) - overdue_seconds(attempt.report_seconds)
    worst = (attempt.worst_seconds or 0) + later
    return attempt.model_copy(
        update={
            "gpu_limit_milliwatts": limit,
            "report_seconds": every,
            "stop_seconds": (attempt.stop_seconds or 0) + later,
            "worst_seconds": worst,
            "overshoot_bound_joules": None
            if limit is None
            else energy_of(Milliwatts(limit * attempt.gpus), worst),
        }
    )


def announce_emissions(
    attempt: AttemptStatus, account: Account, emissions: EmissionsStatus | None
) -> AttemptStatus:
    """The attempt from `announce`, with its bound in emissions too; unchanged where no intensity is known."""
    joules, carbon = attempt.overshoot_bound_joules, account.intensities
    if carbon is None or joules is None:
        return attempt
    emissions = emissions or begin_emissions(account.spec.emissions, carbon)
    ahead = find_highest(account, emissions.basis, seconds=ALLOWANCE_SECONDS)
    worst = max(ahead or Intensity(0), Intensity(emissions.highest_milligrams_per_kilowatt_hour))
    if not worst:
        return attempt
    bound = emissions_of(Joules(joules), Thousandths(attempt.pue_thousandths or THOUSANDTHS), worst)
    seconds = attempt.gpus * (attempt.worst_seconds or 0)
    bound = add(bound, embodied_of(emissions, carbon, account.seen.fleet.models, seconds))
    return attempt.model_copy(update={"overshoot_bound_micrograms": bound})
