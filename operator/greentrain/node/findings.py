"""The conditions of a NodePower on its node and its agent: one finding for each type, from what was read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from greentrain.api.conditions import ConditionStatus
from greentrain.api.lease import OPERATOR_SILENT_SECONDS
from greentrain.energy.account import NodeAccount
from greentrain.energy.counters import Meter
from greentrain.energy.intervals import Fault
from greentrain.node.capping import NodeCaps
from greentrain.node.cards import Card, CardAnswer, Unread
from greentrain.quantities import format_unix_time

LATER = "What it uses meanwhile is counted when it answers again."


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition as it is now."""

    type: str
    status: ConditionStatus
    reason: str
    message: str


def judge_pause(pause: str) -> Finding:
    """Of the GPUs, while their driver's library is to be closed."""
    return Finding("DevicesReadable", "False", "Paused", f"{pause} {LATER}")


def judge_library(problem: str) -> Finding:
    """Of the GPUs, where their driver's library cannot be used at all."""
    return Finding("DevicesReadable", "False", "NvmlUnavailable", problem)


def judge_cards(answers: Mapping[str, CardAnswer], unnamed: Mapping[int, str]) -> Finding:
    """Of the GPUs, by each one's answer, and by index why others have not even a name."""
    failed = {u: a for u, a in answers.items() if isinstance(a, Unread)}
    if failed:
        first, why = next(iter(failed.items()))
        text = f"{len(failed)} of {len(answers)} GPUs cannot be read, such as {first}: {why.message} {LATER}"
        lost = any(a.gone for a in failed.values())
        return Finding("DevicesReadable", "False", "GpuLost" if lost else "GpuFailing", text)
    if unnamed:
        index, reason = next(iter(unnamed.items()))
        text = f"{len(unnamed)} GPUs do not even give their UUID, such as that with index {index}: {reason} {LATER}"
        return Finding("DevicesReadable", "False", "GpuFailing", text)
    if not answers:
        return Finding("DevicesReadable", "True", "NoGPU", "NVML answers, and this node has no GPU")
    return Finding("DevicesReadable", "True", "Read", f"{len(answers)} GPUs are read")


_FAULTS: Mapping[Fault, str] = {
    "WentBack": "went back to a value that no reset explains",
    "Jumped": "grew by more than the GPU can draw at its highest power limit",
    "Still": "did not grow while the GPU drew power",
    "Slow": "grew by less than the GPU's power adds up to",
}


def judge_counters(account: NodeAccount, cards: Iterable[Card]) -> Finding:
    """Of the GPUs' energy counters: whether what they show can be what the GPUs have used."""
    meters = {c.uuid: account.cards[c.uuid].meter for c in cards if c.uuid in account.cards}
    doubted = {uuid: m for uuid, m in meters.items() if m.doubt is not None}
    if doubted:
        uuid, meter = next(iter(doubted.items()))
        more = f" {len(doubted) - 1} other GPUs have such a fault too." if len(doubted) > 1 else ""
        text = (
            f"the energy counter of {uuid} {_say(meter)}.{more} Until it is plausible again the GPU's power is added up "
            "instead, as an estimate; where that is not known either, the time is missing. If this stays, reset the GPU or "
            "update its driver."
        )
        return Finding("CountersPlausible", "False", "CounterFault", text)
    faulty = {uuid: m for uuid, m in meters.items() if m.faults}
    if faulty:
        uuid, meter = max(faulty.items(), key=lambda item: item[1].last_fault_wall)
        count = sum(m.faults for m in faulty.values())
        text = (
            f"energy counters are plausible again; {count} faults since the account began, the last: that of {uuid} "
            f"{_say(meter)}, and the GPU's power was added up instead"
        )
        return Finding("CountersPlausible", "True", "Recovered", text)
    text = "what the energy counters show is what the GPUs can have used"
    return Finding("CountersPlausible", "True", "Plausible", text)


def _say(meter: Meter) -> str:
    fault = _FAULTS.get(meter.last_fault, "showed what cannot be") if meter.last_fault else "is in doubt"
    return f"{fault} at {format_unix_time(meter.last_fault_wall)}"


def judge_silent_kubelet(problem: str) -> Finding:
    """Of the allocations, where the kubelet does not answer."""
    text = f"{problem} Energy is counted on and divided when it answers again."
    return Finding("HoldersKnown", "Unknown", "KubeletSilent", text)


def judge_old_kubelet(problem: str) -> Finding:
    """Of the allocations, where the kubelet cannot report them."""
    text = (
        f"{problem} Energy is counted and cannot be divided: the kubelet must be 1.15 or newer and serve it."
    )
    return Finding("HoldersKnown", "Unknown", "NoPodResources", text)


def judge_allocations(problems: Sequence[str]) -> Finding:
    """Of the allocations, by what was listed and is not understood."""
    if problems:
        return Finding("HoldersKnown", "False", "DeviceNotUnderstood", "; ".join(problems[:3]))
    return Finding("HoldersKnown", "True", "Listed", "the kubelet says which pod holds which GPU")


def judge_host(problem: str | None, problems: Sequence[str] = ()) -> Finding:
    """Of processors and memory; `problem` is why their energy cannot be read, `problems` why that of some of them cannot."""
    if problem is not None:
        text = f"{problem} Energy of processors and memory is not counted."
        return Finding("HostReadable", "False", "NoRapl", text)
    if problems:
        text = f"{len(problems)} RAPL counters: {problems[0]} The energy of the others is counted."
        return Finding("HostReadable", "False", "CounterFault", text)
    text = "energy of processors and memory is read and shared by CPU time"
    return Finding("HostReadable", "True", "Read", text)


def judge_journal(problem: str | None) -> Finding:
    """Of the journal of the account; `problem` is why it cannot be written."""
    if problem is not None:
        text = f"the journal on this node's disk cannot be written: {problem}; counting goes on in memory"
        return Finding("JournalWritable", "False", "WriteFailed", text)
    return Finding("JournalWritable", "True", "Written", "what was counted is on this node's disk")


NOT_WRITTEN_YET = Finding("JournalWritable", "Unknown", "NotYet", "nothing was written yet")


def judge_caps(caps: NodeCaps, cards: Iterable[Card], pause: str | None) -> Finding:
    """Of power limits: whether they are set where jobs request them. `pause` is why the driver is to be closed."""
    off = next((c.uuid for c in cards if c.persistence is False), None)
    if pause is not None:
        text = f"{pause} Until then limits are as they were before."
        return Finding("CapsAllowed", "False", "Paused", text)
    if caps.dry_run:
        text = "a dry run: reports say what would be set, and nothing is"
        return Finding("CapsAllowed", "False", "DryRun", text)
    if not caps.allowed:
        text = "there is no journal on the node's disk, and no limit is changed without it"
        return Finding("CapsAllowed", "False", "NoJournal", text)
    if caps.disk is not None:
        text = f"the journal on the node's disk cannot be written ({caps.disk}), and no limit is changed without it"
        return Finding("CapsAllowed", "False", "NoJournal", text)
    if off is not None:
        text = (
            f"persistence mode is off on {off}: the driver forgets a limit when nothing uses the card, which this "
            "agent does as long as it runs; nvidia-smi -pm 1 makes limits last"
        )
        return Finding("CapsAllowed", "True", "PersistenceOff", text)
    return Finding("CapsAllowed", "True", "Allowed", "power limits are set where jobs ask for them")


def judge_operator(lease: tuple[str, str] | None, *, silent: bool, renewed: bool) -> Finding:
    """Of the operator: whether the Lease of this namespace and name was renewed lately, or ever."""
    if lease is None:
        text = "no --operator-lease is given: the operator counts as silent, and a spent allowance is acted on at once"
        return Finding("OperatorActive", "False", "NoLease", text)
    name = "/".join(lease)
    if silent:
        text = (
            f"the operator's Lease {name} was not renewed for {OPERATOR_SILENT_SECONDS:.0f} s or cannot be read: pods "
            "whose allowance of energy is spent are throttled and evicted"
        )
        return Finding("OperatorActive", "False", "Silent", text)
    if not renewed:
        return Finding("OperatorActive", "Unknown", "NotYet", f"the operator's Lease {name} was not seen yet")
    text = f"the operator renews its Lease {name}: it decides about budgets"
    return Finding("OperatorActive", "True", "LeaseRenewed", text)
