"""Two hundred seeded lives of power caps: pods, administrators, rivals, faults and agents that are killed."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import get_args

import pytest

from greentrain.api.nodepower import CapReason
from greentrain.node.caps import Hindrance
from greentrain.quantities import Milliwatts, PowerCap
from tests.scenario.cards import Node, World, odd_limit
from tests.support.lives import Suite
from tests.support.world.cards import FOREVER, WATT, Card

STEPS = 200

REFUSALS: tuple[CapReason, ...] = ("NotPermitted", "OutOfRange")
HINDRANCES: tuple[Hindrance, ...] = (
    Hindrance("MigMode", "it is divided into instances"),
    Hindrance("Shared", "two pods hold it"),
)

FAULTS = frozenset(
    {
        "agent ends",
        "agent killed",
        "agent starts",
        "API server away",
        "card does not tell its limit",
        "card lost",
        "card lost until a reboot",
        "card taken over",
        "driver loaded anew",
        "hindered",
        "journal fails",
        "journal fails to forget",
        "killed after the journal",
        "killed after the write",
        "killed before the write",
        "kubelet silent for long",
        "kubelet silent for seconds",
        "limit set by an administrator",
        "operator away",
        "paused",
        "reboot",
        "rival",
        "write hangs and is applied",
        "write hangs and is not",
        "write refused",
    }
)
NOTES = frozenset({"Foreign", "Contested", "Restored", "Left"})


def choose_cap(chance: Random, card: Card) -> PowerCap | None:
    """A cap a user may ask for, also out of the card's range, in fractions of a watt, or none."""
    act = chance.random()
    if act < 0.15:
        return None
    if act < 0.4:
        return PowerCap(percent=chance.choice((10, 30, 50, 60, 70, 80, 90, 100)))
    if act < 0.5:
        return PowerCap(milliwatts=Milliwatts(chance.choice((20, 50, 990)) * WATT))
    if act < 0.6:
        # Hardly below what is usually there before.
        return PowerCap(milliwatts=Milliwatts(card.range.default - chance.choice((200, 400, 900))))
    watts = chance.randrange(card.range.least // WATT, card.range.most // WATT + 10, 10)
    return PowerCap(milliwatts=Milliwatts(watts * WATT + chance.choice((0, 0, 0, 400, -300, 500))))


def disturb(world: World) -> None:
    """One thing that happens to a cluster with GPUs."""
    chance = world.random
    node = chance.choice(world.nodes)
    card = chance.choice(node.cards)
    holder = node.holders.get(card.uuid)
    act = chance.random()
    if act < 0.2:
        start_pod(world, node)
    elif act < 0.3 and holder is not None:
        world.end_pod(node, holder)
        if chance.random() < 0.4:
            # Another pod has the card before anybody has looked.
            world.count("card taken over")
            world.start_pod(node, [card], choose_cap(chance, card))
    elif act < 0.45 and holder is not None:
        world.edit_cap(holder, choose_cap(chance, card))
    elif act < 0.53 and card.answers(world.now):
        world.count("limit set by an administrator")
        world.set_by_others(card, odd_limit(card, chance))
    elif act < 0.56 and card.rival is None:
        world.count("rival")
        card.rival, card.rival_at = odd_limit(card, chance), world.now
        card.rival_every, seconds = chance.choice((((2, 9), (8, 30, 60)), ((20, 70), (200,))))
        card.rival_until = world.now + chance.choice(seconds)
    elif act < 0.66:
        disturb_agent(world, node)
    elif act < 0.96:
        break_something(world, node, card)
    elif act < 0.98:
        world.count("operator away")
        world.operator_until = world.now + chance.choice((10, 60))
    else:
        world.count("API server away")
        world.api_until = world.now + chance.choice((10, 60))


def start_pod(world: World, node: Node) -> None:
    """A pod gets some of the cards nobody holds."""
    free = [c for c in node.cards if c.uuid not in node.holders]
    if free:
        cards = world.random.sample(free, world.random.randint(1, len(free)))
        world.start_pod(node, cards, choose_cap(world.random, cards[0]))


def disturb_agent(world: World, node: Node) -> None:
    """An agent is asked to end, or is killed."""
    if node.agent is None:
        return
    if world.random.random() < 0.5:
        world.count("agent ends")
        world.stop_agent(node)
    else:
        world.count("agent killed")
        world.kill_agent(node)


def silence(world: World) -> None:
    """A kubelet is restarted, or hangs."""
    chance = world.rarer
    if chance.random() < 0.02:
        node, long = chance.choice(world.nodes), chance.random() < 0.4
        world.count("kubelet silent for long" if long else "kubelet silent for seconds")
        node.silent_until = world.now + (100 if long else chance.choice((2, 5, 30)))
        world.say(f"{node.name}: kubelet silent")
        if long and all(c.rival is None for _, c in world.cards):
            let_all_look(world)
            world.pass_time(chance.choice((50, 70)))


def start_agents(world: World) -> None:
    """The kubelet starts what does not run, sooner or later."""
    for node in world.nodes:
        if node.agent is None and world.random.random() < 0.15:
            world.count("agent starts")
            world.start_agent(node)


def break_something(world: World, node: Node, card: Card) -> None:
    """A card, a disk or a driver fails, mostly for a while."""
    chance = world.random
    act, until = chance.random(), world.now + chance.choice((2, 5, 15))
    if act < 0.12:
        world.count("card lost")
        card.lost_until = max(card.lost_until, until)
    elif act < 0.14:
        world.count("card lost until a reboot")
        card.lost_until = FOREVER
    elif act < 0.22:
        world.count("card does not tell its limit")
        card.untold_until = until
    elif act < 0.37:
        card.refused_until, card.refusal = until, chance.choice(REFUSALS)
    elif act < 0.6:
        node.full_until = until
    elif act < 0.75:
        world.count("paused")
        node.paused_until = until
    elif act < 0.9:
        world.count("hindered")
        card.hindrance, card.hindered_until = chance.choice(HINDRANCES), until
    else:
        reboot = chance.random() < 0.5
        world.count("reboot" if reboot else "driver loaded anew")
        world.load_driver(node, reboot=reboot)
    world.say(f"{node.name}, {card.uuid}: something breaks")
    for each in node.cards:
        each.disturbed = world.now


def let_all_look(world: World) -> None:
    """A second of the agents' lives."""
    for node in world.random.sample(world.nodes, len(world.nodes)):
        world.look(node)
        world.watchman.check()
    world.watchman.check_settled()


def live(seed: int) -> World:
    """One seeded life, to its end."""
    world = World(seed)
    world.kill_chance = 0.04
    for _ in range(STEPS):
        # Now and then long enough for a quarrel to be forgotten; a rival never sleeps that long.
        quiet = world.random.random() < 0.03 and all(c.rival is None for _, c in world.cards)
        world.pass_time(world.random.choice((30, 100, 400)) if quiet else 1)
        world.let_rivals_act()
        if world.random.random() < 0.5:
            disturb(world)
            world.watchman.check()
        silence(world)
        start_agents(world)
        let_all_look(world)
    world.pass_time(20)
    world.heal()
    for _ in range(3):
        world.pass_time(20)  # also longer than a write hangs
        let_all_look(world)
    world.watchman.check_rest()
    return world


LIVES: Suite[Counter[str]] = Suite(
    "caps",
    200,
    live=lambda seed: live(seed).story.happened,
    meet=lambda happened: +happened,
    must=FAULTS | NOTES | set(get_args(CapReason)),
)


@pytest.mark.life(LIVES)
def test_whatever_happens_no_cap_outlives_its_pod_or_exceeds_what_was_there(seed: int) -> None:
    assert LIVES.play(seed)


def test_the_chosen_lives_meet_what_all_do() -> None:
    assert LIVES.find_missing(LIVES.chosen) == []


@pytest.mark.all_lives
def test_all_of_that_has_happened() -> None:
    """A fault that never occurs, or a reason that is never told, has not been tried."""
    assert LIVES.find_missing(LIVES.seeds) == []
