"""What a node's agent does about a pod whose energy allowance is spent: so a budget is enforced without the operator too.

The operator gives each pod of a job with a budget an allowance on each node, and acts before it is spent. The agent acts
only while the operator is silent: it sets the pod's cards to their lowest limit at once, then evicts the pod. Only the
operator undoes this, with a higher allowance.

The operator is silent when its Lease is not renewed. The agent measures this with its own clock, because the clocks of two
machines may differ. Only the first Lease that it sees is judged by the time written in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from greentrain.api.lease import OPERATOR_SILENT_SECONDS
from greentrain.api.nodepower import BudgetAction
from greentrain.api.spec import Scope
from greentrain.quantities import Joules, Millijoules, add, from_joules, subtract

START_GRACE_SECONDS = 5.0
"""After its start, how long an agent waits until it has seen the Lease, before the operator counts as silent. A list takes well
below a second where the API server answers; where it does not, a spent allowance must not wait."""


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
    """What an agent has done about a pod's allowance."""

    action: BudgetAction = "None"
    evict: bool = False
    """Whether to request its eviction, once the action has been reported."""
    spent: bool = False


def find_silence(renewed: float | None, *, begun: float, now: float) -> float:
    """Seconds since the operator's last renewal was seen; since the agent's start where none was."""
    return max(0.0, now - (begun if renewed is None else renewed))


def is_silent(renewed: float | None, *, begun: float, now: float) -> bool:
    """Whether the operator counts as silent. All times are of one clock; `renewed` is None where no renewal was seen."""
    patience = START_GRACE_SECONDS if renewed is None else OPERATOR_SILENT_SECONDS
    return find_silence(renewed, begun=begun, now=now) >= patience


def find_allowance(given: Allowance | None, used: Used, *, budgeted: bool) -> Allowance | None:
    """The allowance in force: the given one; 0 J for a pod with a budget that has none; None for a pod without a budget.

    Where only GPUs count, a pod without a GPU gets no allowance, so a pod without any GPU energy is not limited.
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

    While the operator renews its Lease, nothing new is done: it knows that the allowance is spent and decides. What was done
    stays, because the operator may have come back only just now; it undoes it with a higher allowance. An allowance that
    counted as spent only because of the silence is valid again with the next renewal.
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
