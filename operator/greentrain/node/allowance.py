"""What a node's agent does about a pod whose allowance of energy is spent, so that a budget holds without the operator.

The operator gives each pod of a job with a budget an allowance on each node, and acts before it is spent. Only where it
is silent does the agent act in its place: the pod's cards go to their lowest limit at once, and the pod is evicted. What
was begun so is undone by the operator alone, with a higher allowance.

Silence is a lease that is not renewed, by the agent's own clock: two machines' clocks may differ, and only at the first
sight of a lease is there nothing else to go by.
"""

from __future__ import annotations

from dataclasses import dataclass

from greentrain.api.lease import OPERATOR_SILENT_SECONDS
from greentrain.api.nodepower import BudgetAction
from greentrain.api.spec import Scope
from greentrain.quantities import Joules, Millijoules, add, from_joules, subtract

START_GRACE_SECONDS = 5.0
"""After its own start, how long an agent waits for a first sight of the lease before the operator counts as silent: a list
takes well below a second where the API server answers, and where it does not a spent allowance is not to wait."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """Energy a pod may have used in all on one node."""

    joules: Joules
    scope: Scope = "GPU"
    seconds: int | None = None
    """After how many seconds without the operator it counts as spent; None: only when it is used up."""


NOTHING = Allowance(Joules(0))
"""The allowance of a pod that is known to have a budget and for which the operator has given none."""


@dataclass(frozen=True, slots=True)
class Used:
    """Energy a pod has used on one node."""

    gpu: Millijoules = Millijoules(0)
    host: Millijoules = Millijoules(0)
    """Of processors and memory."""

    def within(self, scope: Scope) -> Millijoules:
        """The part that counts."""
        return self.gpu if scope == "GPU" else add(self.gpu, self.host)

    def plus(self, other: Used) -> Used:
        """Both together."""
        return Used(add(self.gpu, other.gpu), add(self.host, other.host))

    def less(self, other: Used) -> Used:
        """By how much it is more than the other; never below nothing."""
        none = Millijoules(0)
        return Used(max(none, subtract(self.gpu, other.gpu)), max(none, subtract(self.host, other.host)))


UNUSED = Used()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it stands with a pod."""

    action: BudgetAction = "None"
    evict: bool = False
    """Whether its eviction is to be asked for, once the action has been reported."""
    spent: bool = False


def find_silence(renewed: float | None, *, begun: float, now: float) -> float:
    """Seconds since the operator was last heard; since the agent's start where it never was."""
    return max(0.0, now - (begun if renewed is None else renewed))


def is_silent(renewed: float | None, *, begun: float, now: float) -> bool:
    """Whether the operator counts as silent; all times on one clock, `heard` is None where it never was."""
    patience = START_GRACE_SECONDS if renewed is None else OPERATOR_SILENT_SECONDS
    return find_silence(renewed, begun=begun, now=now) >= patience


def find_allowance(given: Allowance | None, used: Used, *, budgeted: bool) -> Allowance | None:
    """The allowance in force: the given one; 0 J for a pod with a budget that has none; None for a pod without a budget.

    Where only GPUs count, the operator gives no allowance to a pod without a GPU, so a pod without any GPU energy is not limited.
    """
    return NOTHING if given is None and budgeted and used.gpu > 0 else given


def is_spent(used: Used, allowance: Allowance | None) -> bool:
    """Whether nothing of it is left."""
    return allowance is not None and used.within(allowance.scope) >= from_joules(allowance.joules)


def is_over(allowance: Allowance | None, silence: float) -> bool:
    """Whether it counts as spent because the operator has been silent for too long; `silence` in seconds."""
    return allowance is not None and allowance.seconds is not None and silence >= allowance.seconds


def is_near(used: Used, allowance: Allowance | None, *, draw: float, seconds: float) -> bool:
    """Whether a pod that draws so many milliwatts spends its allowance within so many seconds, or has spent it."""
    if allowance is None or draw <= 0:
        return False
    left = from_joules(allowance.joules) - used.within(allowance.scope)
    return left <= draw * seconds


def decide_action(
    used: Used, allowance: Allowance | None, *, before: BudgetAction, silent: bool, silence: float = 0.0
) -> Verdict:
    """What to do about a pod that has used so much of the allowance in force; `before` is what was done already.

    `silence`: for how many seconds nothing has confirmed that the allowance is valid.

    While the operator renews its Lease, nothing new is done: it knows that the allowance is spent and decides. What was done stays,
    because the operator may have come back only just now; it undoes it with a higher allowance. An allowance that counted as spent
    only because of the silence is valid again with the next renewal.
    """
    spent = is_spent(used, allowance)
    over = is_over(allowance, silence)
    if before == "Evicted":
        return Verdict("Evicted", spent=spent)
    if not (spent or over):
        return Verdict()
    if silent:
        return Verdict("Throttled", evict=True, spent=True)
    return Verdict(before, spent=spent)
