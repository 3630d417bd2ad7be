"""Keeps the caps that are asked for on one node's cards: reads each card, takes the steps `node.caps` decides, reads again.

What was changed on a card stands in the journal before the card is touched. While the kubelet does not say who holds
what, caps stay as they are for a while, since silence disproves nothing; then they are given back, since nobody would
notice a pod's end.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from greentrain.agent.clock import Clock
from greentrain.agent.holders import Holdings
from greentrain.agent.journal import Journal
from greentrain.api.nodepower import CapReason, GpuCap, resolve_cap
from greentrain.devices.errors import (
    DeviceError,
    Gone,
    NotPermitted,
    OutOfRange,
    Unavailable,
    Unsupported,
)
from greentrain.devices.gpus import LimitedGpus
from greentrain.devices.nvidia.driver import read_load
from greentrain.node.caps import Ask, Entry, Hindrance, Keep, Note, Verdict, decide_card, rehearse
from greentrain.node.cards import Card, CurrentLimits
from greentrain.quantities import PowerCap, format_power

logger = logging.getLogger("greentrain.agent")

FILE = "caps.json"

START_SECONDS = 1.0
"""After a start, how long the kubelet has to say who holds what before caps found on cards are given back."""

SILENT_SECONDS = 60.0
"""The same for a kubelet that has fallen silent; it restarts within seconds."""

REFUSED_SECONDS = 10.0
"""How long a card that refused a limit is left alone."""

LOWEST = PowerCap(milliwatts=1)
"""Asks for the lowest limit each card can have."""

ROUNDS = 3
"""Steps and looks at one card in one go: to set a limit and to see that it is set takes two."""


@dataclass
class CapJournal:
    """What the disk holds: cards whose limit we have changed, by UUID, and what was asked last, by the pod's UID."""

    entries: dict[str, Entry] = field(default_factory=dict)
    asked: dict[str, PowerCap] = field(default_factory=dict)


_JOURNAL = TypeAdapter(CapJournal)


class Caps:
    """The caps of one node."""

    def __init__(
        self, journal: Journal, clock: Clock, *, driver: Path, dry_run: bool = False, allowed: bool = True
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._driver = driver
        self.dry_run = dry_run
        self._held = allowed
        """Whether the journal is ours alone."""
        self._read = False
        """Whether what it held is known."""
        self._kept = CapJournal()
        self._unwritten = False
        """Whether the disk holds less than is known: what it lacks is never a card that we have changed."""
        self._asks: dict[str, Ask] = {}
        self._holders_until = float("-inf")
        self._begun = False
        self._told_asks = False
        """Whether the operator's word was heard, which counts for more than the disk's."""
        self._throttled: frozenset[str] = frozenset()
        self._refusals: dict[str, tuple[float, Hindrance]] = {}
        self._told: dict[str, str] = {}
        self.reports: dict[str, GpuCap] = {}
        """What has become of each card's cap, by UUID."""
        self.limits: dict[str, CurrentLimits] = {}
        """Limits of cards that are looked after, as they were read last."""
        self.foreign_changes: Counter[str] = Counter()
        """How often somebody else changed the limit of a capped card, by UUID."""
        self.restores: Counter[str] = Counter()
        """How often a card was given back the limit it had before, by UUID."""
        self.disk: str | None = None
        """Why the journal of caps cannot be written; None while it can."""

    @property
    def changed_cards(self) -> tuple[str, ...]:
        """UUIDs of the cards whose limit we have changed, or may have."""
        return tuple(uuid for uuid, entry in self._kept.entries.items() if entry.changed)

    @property
    def priors(self) -> dict[str, int]:
        """The limits that cards had before us, in milliwatts, of those that we have changed."""
        return {uuid: entry.prior for uuid, entry in self._kept.entries.items() if entry.changed}

    @property
    def asked(self) -> Mapping[str, PowerCap]:
        """What is asked for, by the pod's UID."""
        return self._kept.asked

    @property
    def throttled(self) -> frozenset[str]:
        """UIDs of the pods whose cards are to have their lowest limit, whatever is asked for."""
        return self._throttled

    @property
    def allowed(self) -> bool:
        """Whether there is a journal: without one no limit is changed."""
        return self._held and self._read

    def load(self) -> bool:
        """Read the journal; whether all that it held is known. A damaged one is put aside."""
        self._holders_until = self._clock.elapsed() + START_SECONDS
        return self._held and self._load()

    def _load(self) -> bool:
        try:
            content = self._journal.read(FILE)
            kept = CapJournal() if content is None else _JOURNAL.validate_json(content)
        except OSError as error:
            self._say_once(
                FILE, f"the journal of caps cannot be read: {error.strerror}; no limit is changed without it"
            )
            return False
        except ValidationError as error:
            self._put_aside(error)
            return False
        if self._told_asks:
            kept.asked = self._kept.asked
        self._kept = kept
        self._read = True
        return True

    def _put_aside(self, damage: ValidationError) -> None:
        try:
            aside = self._journal.put_aside(FILE)
        except OSError as error:
            self._say_once(FILE, f"the journal of caps is damaged and cannot be put aside: {error.strerror}")
            return
        self._read = True
        logger.error(
            "the journal of caps is damaged (%d errors) and was put aside as %s: a limit that is still set from then "
            "stays until somebody sets another (nvidia-smi -q -d POWER shows limits and defaults)",
            damage.error_count(),
            aside,
        )

    def take_up(self, asked: Mapping[str, PowerCap] | None) -> None:
        """What the operator asks for; None while that is not known, then what it asked last holds."""
        if asked is None:
            return
        self._told_asks = True
        if dict(asked) != self._kept.asked:
            self._kept.asked = dict(asked)
            self._unwritten = True

    def throttle(self, pods: Iterable[str]) -> None:
        """Have the cards of these pods, by UID, at their lowest limit, and those of no others (`agent.allowances`)."""
        self._throttled = frozenset(pods)

    async def keep(
        self,
        gpus: LimitedGpus,
        cards: Iterable[Card],
        holdings: Holdings | None,
        hindrance: Hindrance | None = None,
    ) -> bool:
        """Look at every card that has a cap, or is to have one, and do what is due; whether anything is new.

        `hindrance` says why no card of the node may have a cap at present.

        Raises:
            Unavailable: NVML is lost.
        """
        now = self._clock.elapsed()
        cards = tuple(cards)
        if self._held and not self._read:
            self._load()
        if holdings is not None:
            self._holders_until = now + SILENT_SECONDS
            self._asks, hindrances = self._find_asks(cards, holdings)
            self._begun = True
        elif now < self._holders_until:
            if not self._begun:
                return False
            hindrances = {}
        else:
            self._asks, hindrances, self._begun = {}, {}, True
        before = {u: (r.reason, r.asked_milliwatts, r.target_milliwatts) for u, r in self.reports.items()}
        for card in cards:
            ask = self._asks.get(card.uuid)
            if ask is None and card.uuid not in self._kept.entries:
                self._forget(card.uuid)
                continue
            why = hindrance or self._hindrance(card.uuid, now) or hindrances.get(card.uuid)
            await self._look_after(gpus, card, ask, why)
        self._mark_absent({card.uuid for card in cards})
        if self._unwritten:
            self._store(self._kept.entries)
        after = {u: (r.reason, r.asked_milliwatts, r.target_milliwatts) for u, r in self.reports.items()}
        return before != after

    def lose_sight(self, cards: Iterable[Card], holdings: Holdings | None, pause: str | None) -> bool:
        """NVML is not there, so nothing is known of any card; whether that is news."""
        if holdings is not None:
            self._asks, _ = self._find_asks(cards, holdings)
        reason: CapReason = "GpuFailing" if pause is None else "Paused"
        text = pause or "NVML cannot be used at present"
        known, self.reports = self.reports, {}
        for uuid, ask in self._asks.items():
            asked = known[uuid].asked_milliwatts if uuid in known else None
            self._put(uuid, ask, asked, None, reason, text)
        return known != self.reports

    async def give_back(self, gpus: LimitedGpus, cards: Iterable[Card]) -> bool:
        """Give every card the limit back it had before us; whether all have it.

        What is asked goes on being asked, of the next agent: a quarrel about a card is not forgotten by it.
        """
        ending = Hindrance("Paused", "the node's agent ends")
        for card in cards:
            if card.uuid in self._kept.entries:
                await self._look_after(gpus, card, self._asks.get(card.uuid), ending)
        self.reports.clear()
        return not self.changed_cards

    def _session(self) -> str:
        return f"{self._clock.boot()}/{read_load(self._driver)}"

    def _hindrance(self, uuid: str, now: float) -> Hindrance | None:
        if not self.allowed:
            return Hindrance("NoJournal", "without a journal on the node's disk no limit is changed")
        until, hindrance = self._refusals.get(uuid, (0.0, None))
        return hindrance if now < until else None

    def _find_asks(
        self, cards: Iterable[Card], holdings: Holdings
    ) -> tuple[dict[str, Ask], dict[str, Hindrance]]:
        """What is asked for each card by the pod that holds it, and why a card cannot have it."""
        asks: dict[str, Ask] = {}
        hindrances: dict[str, Hindrance] = {}
        for card in cards:
            found: list[tuple[int, Ask]] = []
            alone = True
            for held in holdings.cards.get(card.uuid, ()):
                alone = alone and held.alone
                holder = holdings.pods.get(held.pod)
                cap = self._find_cap(holder.uid) if holder is not None and holder.uid else None
                if cap is not None and holder is not None and holder.uid:
                    found.append((resolve_cap(cap, card.limits) or 0, Ask(holder.uid, cap)))
            if not found:
                continue
            # Of two that are listed for a moment while a card changes hands the lower holds.
            first = min(found, key=lambda f: f[0])[1]
            others = tuple(sorted(ask.pod for _, ask in found if ask.pod != first.pod))
            asks[card.uuid] = replace(first, sharing=others)
            if card.partitioned:
                text = "it is in MIG mode, and one limit would hold for the jobs in all its instances"
                hindrances[card.uuid] = Hindrance("MigMode", text)
            elif not alone:
                text = "pods share it, and one limit would hold for all of them"
                hindrances[card.uuid] = Hindrance("Shared", text)
        return asks, hindrances

    def _find_cap(self, pod: str) -> PowerCap | None:
        return LOWEST if pod in self._throttled else self._kept.asked.get(pod)

    async def _look_after(
        self, gpus: LimitedGpus, card: Card, ask: Ask | None, hindrance: Hindrance | None
    ) -> None:
        uuid = card.uuid
        for _ in range(ROUNDS):
            try:
                now = self.limits[uuid] = await gpus.read_limits(uuid)
            except Unavailable:
                raise
            except DeviceError as error:
                self._report_error(uuid, ask, error)
                return
            limits = card.limits.model_copy(
                update={"set_milliwatts": now.set_milliwatts, "enforced_milliwatts": now.enforced_milliwatts}
            )
            entry = self._kept.entries.get(uuid)
            if self.dry_run and entry is not None:
                # What an agent before this one has set is given back: that is no trial.
                hindrance = Hindrance("DryRun", "a dry run: its limit is as it was before")
            verdict = decide_card(
                limits, entry, ask, session=self._session(), now=self._clock.elapsed(), hindrance=hindrance
            )
            if self.dry_run and entry is None:
                verdict = rehearse(verdict, now.set_milliwatts)
            self._report(uuid, ask, verdict, now.binding)
            if not verdict.steps or not await self._take(gpus, uuid, ask, verdict):
                return

    async def _take(self, gpus: LimitedGpus, uuid: str, ask: Ask | None, verdict: Verdict) -> bool:
        """Take the steps one after the other; whether all were taken.

        To give a card back takes no journal: a disk that is full must not keep a cap in place.
        """
        giving_back = verdict.target is None
        note = verdict.note
        for step in verdict.steps:
            written = not self._unwritten
            if isinstance(step, Keep):
                written = self._write_down(uuid, step.entry, anyway=giving_back)
            elif not written and not giving_back:
                written = self._store(self._kept.entries)
            if not written and not giving_back:
                text = f"the journal on the node's disk cannot be written ({self.disk}), and no limit is changed without it"
                self._put(uuid, ask, verdict.asked, verdict.target, "NoJournal", text)
                return False
            if note is not None:
                self._tell(uuid, note)
                note = None
            if isinstance(step, Keep):
                continue
            try:
                await gpus.set_limit(uuid, step.milliwatts)
            except Unavailable:
                raise
            except DeviceError as error:
                self._refuse(uuid, ask, step.milliwatts, error)
                return False
            logger.info("the power limit of %s is set to %s", uuid, format_power(step.milliwatts))
            self._told.pop(uuid, None)
        return True

    # -- the journal --------------------------------------------------------------------------------------

    def _write_down(self, uuid: str, entry: Entry | None, *, anyway: bool) -> bool:
        """Have the disk say this of a card; an entry that could not be written is as it was, unless `anyway`."""
        entries = {u: e for u, e in self._kept.entries.items() if u != uuid}
        if entry is not None:
            entries[uuid] = entry
        stored = self._store(entries)
        if stored or anyway:
            self._kept.entries = entries
        return stored

    def _store(self, entries: dict[str, Entry]) -> bool:
        if not self.allowed:
            return False  # what is there must not be lost
        try:
            self._journal.store(_JOURNAL.dump_json(CapJournal(entries, self._kept.asked)), FILE)
        except OSError as error:
            self.disk = error.strerror or str(error)
            self._unwritten = True
            return False
        self.disk = None
        self._unwritten = False
        return True

    # -- telling ------------------------------------------------------------------------------------------

    def _tell(self, uuid: str, note: Note) -> None:
        power = format_power(note.milliwatts)
        match note.kind:
            case "Foreign":
                self.foreign_changes[uuid] += 1
                logger.warning(
                    "somebody else set the power limit of %s to %s: it is what it gets back", uuid, power
                )
            case "Contested":
                self.foreign_changes[uuid] += 1
                logger.error("the power limit of %s is contested: it is left at %s", uuid, power)
            case "Left":
                self.foreign_changes[uuid] += 1
                logger.warning("somebody else set the power limit of %s to %s: it is left there", uuid, power)
            case "Restored":
                self.restores[uuid] += 1
                logger.info("%s has its power limit of before again: %s", uuid, power)

    def _report(self, uuid: str, ask: Ask | None, verdict: Verdict, binding: bool | None) -> None:
        if ask is None:
            self.reports.pop(uuid, None)
            return
        self._put(uuid, ask, verdict.asked, verdict.target, verdict.reason, verdict.message, binding)

    def _put(
        self,
        uuid: str,
        ask: Ask | None,
        asked: int | None,
        target: int | None,
        reason: CapReason,
        message: str,
        binding: bool | None = None,
    ) -> None:
        if ask is None:
            return
        if ask.pod in self._throttled:
            why = "its pod's allowance of energy is spent or has ended, and the operator was silent"
            lowest = reason == "Clamped" and target is not None
            message = (
                f"its limit is {format_power(target or 0)}, the lowest it can have: {why}"
                if lowest
                else f"{why}: {message}"
            )
        self.reports[uuid] = GpuCap(
            pod_uid=ask.pod,
            sharing_pod_uids=ask.sharing,
            asked_milliwatts=asked,
            target_milliwatts=target,
            reason=reason,
            message=message[:512],
            binding=binding,
        )

    def _report_error(self, uuid: str, ask: Ask | None, error: DeviceError) -> None:
        reason: CapReason = "GpuLost" if isinstance(error, Gone) else "GpuFailing"
        asked = self.reports[uuid].asked_milliwatts if uuid in self.reports else None
        self._put(uuid, ask, asked, None, reason, str(error))
        self._say_once(uuid, f"{error} Its power limit is looked after when it answers again.")

    def _refuse(self, uuid: str, ask: Ask | None, milliwatts: int, error: DeviceError) -> None:
        reasons: dict[type[DeviceError], CapReason] = {
            NotPermitted: "NotPermitted",
            Unsupported: "Unsupported",
            OutOfRange: "OutOfRange",
            Gone: "GpuLost",
        }
        reason = reasons.get(type(error), "GpuFailing")
        if reason in ("NotPermitted", "Unsupported", "OutOfRange"):
            # It said so itself, so the limit is as it was; asking again each second would change nothing.
            self._refusals[uuid] = (self._clock.elapsed() + REFUSED_SECONDS, Hindrance(reason, str(error)))
        known = self.reports.get(uuid)
        self._put(
            uuid,
            ask,
            known.asked_milliwatts if known is not None else None,
            known.target_milliwatts if known is not None else None,
            reason,
            str(error),
        )
        self._say_once(
            uuid, f"the power limit of {uuid} cannot be set to {format_power(milliwatts)}: {error}"
        )

    def _say_once(self, uuid: str, text: str) -> None:
        if self._told.get(uuid) != text:
            self._told[uuid] = text
            logger.warning("%s", text)

    def _mark_absent(self, present: set[str]) -> None:
        """Cards that NVML does not list any more have no cap to tell of."""
        for uuid in self.reports.keys() - present:
            self._forget(uuid)

    def _forget(self, uuid: str) -> None:
        self.reports.pop(uuid, None)
        self._told.pop(uuid, None)
