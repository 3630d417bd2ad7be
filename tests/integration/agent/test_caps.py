"""Caps kept by the agent as it is shipped: what the operator asks, what the cards are set to, and that it is undone.

A story is one node's, with simulated cards below NVML, whose limits are read past the agent. Several stories are played
at once, since most of their time is waiting; each test tells how its story went.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from sandbox.controlplane import ControlPlane
from sandbox.simgpu.cards import Calls, Card, Fault
from tests.integration.agent.processes import (
    AgentProcess,
    Json,
    Node,
    Pod,
    build_kubeconfig_to_nowhere,
    condition_of,
    find_cap,
    message_of,
    until,
)
from tests.integration.agent.stories import Book, Outcomes, Story, judge
from tests.support.api import MERGE
from tests.support.proxy import Proxy, Refuse

BOOK = Book("caps", seconds=120.0, at_once=8)
story = BOOK.story


async def begin_agent(node: Node, *arguments: str) -> AgentProcess:
    """An agent that has made itself known, so that it can be asked."""
    agent = await node.start_agent(arguments=arguments)
    await node.until_told(lambda s: s["gpuCount"] == len(node.cards), "a first report")
    return agent


async def begin_capped(node: Node, *arguments: str, cap: str = "200W") -> tuple[AgentProcess, Pod]:
    """An agent, and a pod whose one card, the first, is capped and works."""
    agent = await begin_agent(node, *arguments)
    pod = await node.begin_pod("digits-worker-0-1", job="digits")
    node.cards.set_load(0, 1.0)
    await node.ask((pod, cap))
    await node.until_told(lambda s: find_cap(s).get("reason") == "Capped", "a cap in force")
    return agent, pod


def reported(reason: str, *, due: int | None = None, card: int = 0) -> Callable[[Json], bool]:
    """A status that says so of a card's cap, and that so many milliwatts are due."""

    def accept(status: Json) -> bool:
        cap = find_cap(status, card)
        return cap.get("reason") == reason and (due is None or cap.get("targetMilliwatts") == due)

    return accept


def limits_of(status: Json, card: int = 0) -> tuple[int | None, int, int]:
    """Limits as they are told, in milliwatts: before us, set, in force."""
    limits = status["gpus"][card]["limits"]
    return limits.get("previousMilliwatts"), limits["setMilliwatts"], limits["enforcedMilliwatts"]


def count_draws(node: Node) -> int:
    """How often the draw of the first card has changed so far."""
    return node.cards.drain_events(0)[1]


def highest_draw(node: Node, since: int) -> int:
    """The highest draw of the first card among its changes from that number on, the last one before included."""
    events, _ = node.cards.drain_events(0, max(0, since - 1))
    return max(event.milliwatts for event in events)


async def restart(node: Node, agent: AgentProcess, *arguments: str) -> AgentProcess:
    """The agent is killed, and another one begins; returns as soon as that one has reported."""
    await agent.end()
    before = (await node.status())["observedAt"]
    again = await node.start_agent(arguments=arguments)
    await node.until_told(lambda s: s["observedAt"] > before, "a report of the next agent")
    return again


@story()
async def a_cap_is_set_followed_and_taken_back(node: Node) -> None:
    _, pod = await begin_capped(node)
    assert node.limit() == 200
    status = await node.until_told(lambda s: find_cap(s).get("binding"), "that the limit slows the card down")
    cap = find_cap(status)
    assert (cap["podUid"], cap["askedMilliwatts"], cap["targetMilliwatts"]) == (pod.uid, 200_000, 200_000)
    assert limits_of(status) == (300_000, 200_000, 200_000)
    assert condition_of(status, "CapsAllowed") == ("True", "Allowed")
    for text, watts in (("180W", 180), ("70%", 210), ("0.25kW", 250)):
        await node.ask((pod, text))
        status = await node.until_told(reported("Capped", due=watts * 1000), f"{text} in force")
        assert limits_of(status) == (300_000, watts * 1000, watts * 1000)
        assert node.limit() == watts
    await node.ask()
    status = await node.until_told(lambda s: not find_cap(s), "no cap")
    assert limits_of(status) == (None, 300_000, 300_000)
    assert (node.limit(), node.read_caps()["entries"]) == (300, {})
    await node.ask((pod, "160W"))
    await node.until_limits(160)
    await node.end_pod(pod)
    status = await node.until_told(lambda s: not find_cap(s), "no cap when the pod has ended")
    assert limits_of(status) == (None, 300_000, 300_000)


@story("A100", "A100", "V100", "V100")
async def each_pod_of_a_node_has_its_own_and_nobody_gets_more_than_there_was(node: Node) -> None:
    node.cards.set_limit(2, 170)
    await begin_agent(node)
    pods = [await node.begin_pod(f"job-{i}-worker-0-1", (i,), job=f"job-{i}") for i in range(3)]
    await node.ask((pods[0], "150W"), (pods[1], "40W"), (pods[2], "250W"))
    status = await node.until_told(
        lambda s: [find_cap(s, i).get("reason") for i in range(3)] == ["Capped", "Clamped", "PreviousLower"],
        "three caps",
    )
    assert [node.limit(i) for i in range(4)] == [150, 100, 170, 300]
    assert not find_cap(status, 3)
    assert [find_cap(status, i)["podUid"] for i in range(3)] == [pod.uid for pod in pods]
    await node.end_pod(pods[0])
    await node.until_limits(400, 100, 170, 300)
    await node.end_pod(pods[1])
    await node.end_pod(pods[2])
    await node.until_limits(400, 400, 170, 300)


@story("V100", "V100")
async def told_to_stop_it_gives_every_card_its_limit_back_and_says_so(node: Node) -> None:
    node.cards.set_limit(1, 250)
    agent = await begin_agent(node)
    pod = await node.begin_pod("digits-worker-0-1", (0, 1), job="digits")
    await node.ask((pod, "200W"))
    await node.until_told(lambda s: reported("Capped")(s) and reported("Capped", card=1)(s), "both capped")
    assert await agent.end(signal.SIGTERM) == 0
    assert [node.limit(i) for i in (0, 1)] == [300, 250]
    status = await node.status()
    assert [limits_of(status, i) for i in (0, 1)] == [(None, 300_000, 300_000), (None, 250_000, 250_000)]
    assert not find_cap(status)
    assert not find_cap(status, 1)
    assert node.read_caps()["entries"] == {}
    assert "Traceback" not in agent.said()
    # The next one is asked the same still.
    await node.start_agent()
    await node.until_limits(200, 200)


@story()
async def told_to_stop_while_the_server_is_in_trouble_it_says_so_as_soon_as_it_is_heard(node: Node) -> None:
    async with Proxy.start(node.kubeconfig, node.folder) as proxy:
        agent = await node.start_agent(kubeconfig=proxy.kubeconfig)
        await node.until_told(lambda s: s["gpuCount"] == 1, "a first report")
        await node.ask((await node.begin_pod("digits-worker-0-1", job="digits"), "200W"))
        await node.until_told(reported("Capped"), "a cap in force")
        refused = proxy.script("PATCH", r"/nodepowers/[^/]+/status", Refuse(503, "Unavailable"), times=None)
        ending = asyncio.create_task(agent.end(signal.SIGTERM))
        await node.until_limits(300)
        await until(lambda: refused.hits >= 2, what="it was refused and asked again")
        assert limits_of(await node.status())[0] == 300_000
        proxy.forgive()
        assert await ending == 0
    assert limits_of(await node.status()) == (None, 300_000, 300_000)


@story()
async def killed_it_leaves_the_limit_and_the_next_one_gives_it_back_to_a_pod_that_ended(node: Node) -> None:
    agent, pod = await begin_capped(node)
    await agent.end()
    await node.end_pod(pod)
    assert node.limit() == 200
    await node.start_agent()
    await node.until_limits(300)
    status = await node.until_told(lambda s: limits_of(s) == (None, 300_000, 300_000), "that it is back")
    assert not find_cap(status)
    assert node.read_caps()["entries"] == {}


@story()
async def killed_with_the_pod_still_there_the_cap_stays_and_is_given_back_later(node: Node) -> None:
    agent, pod = await begin_capped(node)
    since = count_draws(node)
    for _ in range(2):
        agent = await restart(node, agent)
        await node.until_told(reported("Capped"), "a cap in force")
    # A limit that had been given back for a moment would have let it draw 235 W.
    assert highest_draw(node, since) < 200_000
    assert limits_of(await node.status()) == (300_000, 200_000, 200_000)
    await node.end_pod(pod)
    await node.until_limits(300)


@story()
async def begun_anew_without_an_api_server_it_keeps_to_what_was_asked_last(node: Node) -> None:
    agent, pod = await begin_capped(node)
    since = count_draws(node)
    await agent.end()
    nowhere = build_kubeconfig_to_nowhere(node.kubeconfig, node.folder, node.server.url)
    agent = await node.start_agent(kubeconfig=nowhere)

    async def scrape(line: str) -> None:
        async with asyncio.timeout(60):
            while True:
                if line in (await agent.fetch("/metrics"))[1]:
                    return
                await asyncio.sleep(0.2)

    await scrape('reason="Capped"} 1.0')
    assert highest_draw(node, since) < 200_000
    # It does not only leave the limit as it is.
    node.cards.set_limit(0, 250)
    await node.until_limits(200)
    assert list(node.read_caps()["asked"]) == [pod.uid]
    await node.end_pod(pod)
    await node.until_limits(250)
    assert "Traceback" not in agent.said()


@story("A100", "A100")
async def what_an_administrator_sets_meanwhile_is_what_the_card_gets_back(node: Node) -> None:
    agent = await begin_agent(node)
    lowered = await node.begin_pod("lowered-worker-0-1", (0,), job="lowered")
    raised = await node.begin_pod("raised-worker-0-1", (1,), job="raised")
    await node.ask((lowered, "200W"), (raised, "200W"))
    await node.until_told(lambda s: reported("Capped")(s) and reported("Capped", card=1)(s), "both capped")
    node.cards.set_limit(0, 150)
    node.cards.set_limit(1, 350)
    status = await node.until_told(
        lambda s: reported("PreviousLower")(s) and limits_of(s, 1) == (350_000, 200_000, 200_000),
        "both followed",
    )
    # A prior is told of a card that we have changed; this one is the administrator's.
    assert limits_of(status)[1:] == (150_000, 150_000)
    assert find_cap(status, 1)["reason"] == "Capped"
    _, page = await agent.fetch("/metrics")
    for card in (0, 1):
        uuid = node.cards.read_card(card).uuid
        line = next(
            found
            for found in page.splitlines()
            if found.startswith(f'greentrain_gpu_power_limit_foreign_changes_total{{gpu="{uuid}"')
        )
        assert line.endswith(" 1.0")
    await node.end_pod(lowered)
    await node.end_pod(raised)
    await node.until_limits(150, 350)
    await asyncio.sleep(2)
    assert [node.limit(card) for card in (0, 1)] == [150, 350]


@story("V100", "V100")
async def what_an_administrator_sets_while_no_agent_runs_survives(node: Node) -> None:
    agent = await begin_agent(node)
    ends = await node.begin_pod("ends-worker-0-1", (0,), job="ends")
    stays = await node.begin_pod("stays-worker-0-1", (1,), job="stays")
    await node.ask((ends, "200W"), (stays, "200W"))
    await node.until_told(lambda s: reported("Capped")(s) and reported("Capped", card=1)(s), "both capped")
    await agent.end()
    node.cards.set_limit(0, 250)
    node.cards.set_limit(1, 260)
    await node.end_pod(ends)
    agent = await node.start_agent()
    await node.until_limits(250, 200)
    await node.until_told(
        lambda s: limits_of(s, 1) == (260_000, 200_000, 200_000) and not find_cap(s), "what is so"
    )
    assert "it is left there" in agent.said()
    await node.end_pod(stays)
    await node.until_limits(250, 260)
    # An entry goes after its limit was given back, not before.
    await until(lambda: node.read_caps()["entries"] == {}, what="an empty journal")


@story()
async def a_limit_somebody_else_insists_on_is_left_until_the_cap_is_edited(node: Node) -> None:
    _, pod = await begin_capped(node)
    for watts in (280, 290):
        node.cards.set_limit(0, watts)
        await node.until_limits(200)
    node.cards.set_limit(0, 270)
    status = await node.until_told(reported("Contested"), "that it is contested")
    cap = find_cap(status)
    assert "change spec.power.cap to try again" in cap["message"]
    assert (cap["askedMilliwatts"], cap.get("targetMilliwatts")) == (200_000, None)
    await asyncio.sleep(3)
    assert node.limit() == 270
    await node.ask((pod, "180W"))
    status = await node.until_told(reported("Capped", due=180_000), "the edited cap")
    assert limits_of(status) == (270_000, 180_000, 180_000)
    await node.end_pod(pod)
    await node.until_limits(270)


@story(Card("A100", ("3g.20gb", "2g.10gb")), "V100", "V100")
async def cards_that_several_can_hold_are_refused_with_the_reason(node: Node) -> None:
    instance = node.cards.read_instances(0)[0].uuid
    shared = node.cards.read_card(1).uuid
    await begin_agent(node)
    pods = [
        await node.begin_pod("mig-worker-0-1", (0,), job="mig", devices=(instance,)),
        await node.begin_pod("one-worker-0-1", (1,), job="one", devices=(f"{shared}::0",)),
        await node.begin_pod("other-worker-0-1", (1,), job="other", devices=(f"{shared}::1",)),
        await node.begin_pod("whole-worker-0-1", (2,), job="whole"),
    ]
    await node.ask(*((pod, "200W") for pod in pods))
    status = await node.until_told(
        lambda s: [find_cap(s, i).get("reason") for i in range(3)] == ["MigMode", "Shared", "Capped"],
        "two refused",
    )
    assert "MIG mode" in find_cap(status)["message"]
    assert "pods share it" in find_cap(status, 1)["message"]
    assert [node.limit(i) for i in range(3)] == [400, 300, 200]


@story("V100", "V100", "V100")
async def a_card_that_refuses_is_said_to_and_tried_again(node: Node) -> None:
    node.cards.fault(0, Fault.NO_PERMISSION)
    node.cards.fault(1, Fault.NOT_SUPPORTED, calls=Calls.SET)
    await begin_agent(node)
    pod = await node.begin_pod("digits-worker-0-1", (0, 1, 2), job="digits")
    await node.ask((pod, "200W"))
    reasons = ["NotPermitted", "Unsupported", "Capped"]
    status = await node.until_told(
        lambda s: [find_cap(s, i).get("reason") for i in range(3)] == reasons, "two refusals"
    )
    assert "run the agent's pod privileged" in find_cap(status)["message"]
    assert find_cap(status)["askedMilliwatts"] == 200_000
    assert [node.limit(i) for i in range(3)] == [300, 300, 200]
    # Nothing was changed, so nothing is to be given back.
    await until(
        lambda: list(node.read_caps()["entries"]) == [node.cards.read_card(2).uuid], what="a clean journal"
    )
    node.cards.clear_faults()
    await node.until_limits(200, 200, 200)
    await node.end_pod(pod)
    await node.until_limits(300, 300, 300)


@story()
async def without_a_journal_no_limit_is_changed(node: Node) -> None:
    agent = await begin_agent(node)
    pod = await node.begin_pod("digits-worker-0-1", job="digits")
    # No file can be written where a folder is.
    blocking = node.journal / "caps.partial"
    blocking.mkdir()
    await node.ask((pod, "200W"))
    status = await node.until_told(reported("NoJournal"), "that there is no journal")
    assert "no limit is changed without it" in find_cap(status)["message"]
    status = await node.until_told(
        lambda s: condition_of(s, "CapsAllowed") == ("False", "NoJournal"), "its condition"
    )
    assert "Is a directory" in message_of(status, "CapsAllowed")
    assert condition_of(status, "JournalWritable") == ("True", "Written")
    assert node.limit() == 300
    blocking.rmdir()
    await node.until_limits(200)
    status = await node.until_told(lambda s: condition_of(s, "CapsAllowed")[0] == "True", "caps allowed")
    assert reported("Capped")(status)
    # A disk that fails later keeps no cap in place.
    blocking.mkdir()
    await node.end_pod(pod)
    await node.until_limits(300)
    # And the journal that could not be brought up to date leads to nothing wrong.
    agent = await restart(node, agent)
    blocking.rmdir()
    await until(lambda: node.read_caps()["entries"] == {}, what="an empty journal")
    assert node.limit() == 300
    assert "Traceback" not in agent.said()


@story()
async def where_the_journal_is_no_folder_no_limit_is_changed(node: Node) -> None:
    node.journal.write_text("a file where a folder should be")
    await begin_agent(node)
    pod = await node.begin_pod("digits-worker-0-1", job="digits")
    await node.ask((pod, "200W"))
    status = await node.until_told(reported("NoJournal"), "that there is no journal")
    assert condition_of(status, "CapsAllowed") == ("False", "NoJournal")
    assert node.limit() == 300
    assert node.journal.read_text() == "a file where a folder should be"


@story(Card("V100", persistence=False))
async def a_driver_that_may_forget_limits_is_told_of_and_capped_all_the_same(node: Node) -> None:
    await begin_capped(node)
    status = await node.until_told(
        lambda s: condition_of(s, "CapsAllowed") == ("True", "PersistenceOff"), "persistence"
    )
    assert node.cards.read_card(0).uuid in message_of(status, "CapsAllowed")
    assert "nvidia-smi -pm 1" in message_of(status, "CapsAllowed")


@story()
async def a_driver_that_is_to_be_replaced_gets_its_cards_back_and_is_let_go(node: Node) -> None:
    node.load_driver()
    await node.server.call("POST", "/api/v1/nodes", {"metadata": {"name": node.name}})

    async def label(value: str | None) -> None:
        labels = {"metadata": {"labels": {"nvidia.com/gpu.deploy.driver": value}}}
        await node.server.call("PATCH", f"/api/v1/nodes/{node.name}", labels, content_type=MERGE)

    try:
        agent, pod = await begin_capped(node)
        assert agent.maps(node.cards.path)
        await label("paused-for-driver-upgrade")
        await until(lambda: not agent.maps(node.cards.path), what="NVML let go")
        assert node.limit() == 300
        status = await node.until_told(reported("Paused"), "the pause")
        assert condition_of(status, "CapsAllowed") == ("False", "Paused")
        status = await node.until_told(
            lambda s: condition_of(s, "DevicesReadable") == ("False", "Paused"), "its condition"
        )
        assert "nvidia.com/gpu.deploy.driver is paused-for-driver-upgrade" in message_of(
            status, "DevicesReadable"
        )
        await asyncio.sleep(2)
        assert not agent.maps(node.cards.path)
        node.load_driver()
        node.cards.set_limit(0, 290)  # what an administrator's tool does after each load
        await label("true")
        await node.until_limits(200)
        status = await node.until_told(
            lambda s: reported("Capped")(s) and condition_of(s, "CapsAllowed")[0] == "True", "a cap again"
        )
        assert limits_of(status) == (290_000, 200_000, 200_000)
        await node.end_pod(pod)
        await node.until_limits(290)
    finally:
        await node.server.call("DELETE", f"/api/v1/nodes/{node.name}")


@story("V100", "V100")
async def with_another_driver_the_journal_is_void(node: Node) -> None:
    node.load_driver()
    agent = await begin_agent(node)
    ends = await node.begin_pod("ends-worker-0-1", (0,), job="ends")
    stays = await node.begin_pod("stays-worker-0-1", (1,), job="stays")
    await node.ask((ends, "200W"), (stays, "200W"))
    await node.until_told(lambda s: reported("Capped")(s) and reported("Capped", card=1)(s), "both capped")
    await agent.end()
    node.load_driver()
    # By chance the very limits that were ours with the driver before.
    node.cards.set_limit(0, 200)
    node.cards.set_limit(1, 250)
    await node.end_pod(ends)
    await node.start_agent()
    await node.until_limits(200, 200)
    await node.until_told(lambda s: limits_of(s, 1) == (250_000, 200_000, 200_000), "the prior of now")
    await until(
        lambda: list(node.read_caps()["entries"]) == [node.cards.read_card(1).uuid], what="a voided entry"
    )
    await node.end_pod(stays)
    await node.until_limits(200, 250)


@story()
async def a_dry_run_sets_nothing_and_says_what_it_would_set(node: Node) -> None:
    agent = await begin_agent(node, "--dry-run")
    pod = await node.begin_pod("digits-worker-0-1", job="digits")
    await node.ask((pod, "200W"))
    status = await node.until_told(reported("DryRun"), "a dry run")
    assert "which is 300W now, would be set to 200W" in find_cap(status)["message"]
    assert condition_of(status, "CapsAllowed") == ("False", "DryRun")
    assert node.limit() == 300
    agent = await restart(node, agent)
    await node.until_limits(200)
    # What an agent before a dry run has set is undone.
    await restart(node, agent, "--dry-run")
    await node.until_limits(300)
    status = await node.until_told(reported("DryRun"), "a dry run again")
    assert limits_of(status) == (None, 300_000, 300_000)


@story("V100", "V100")
async def what_a_killed_agent_left_can_be_given_back_by_command(node: Node) -> None:
    agent = await begin_agent(node)
    pod = await node.begin_pod("digits-worker-0-1", (0, 1), job="digits")
    await node.ask((pod, "200W"))
    await node.until_told(lambda s: reported("Capped")(s) and reported("Capped", card=1)(s), "both capped")
    await agent.end()
    node.cards.fault(1, Fault.LOST)
    restoring = await node.start_agent(arguments=("restore",))
    assert await restoring.wait() == 1
    lost = node.cards.read_card(1).uuid
    assert (
        f"{lost}: its previous power limit of 300W is not restored (nvidia-smi -i {lost} -pl"
        in restoring.said()
    )
    assert [node.limit(card) for card in (0, 1)] == [300, 200]
    node.cards.clear_faults()
    restoring = await node.start_agent(arguments=("restore",))
    assert await restoring.wait() == 0
    assert [node.limit(card) for card in (0, 1)] == [300, 300]
    restoring = await node.start_agent(arguments=("restore",))
    assert await restoring.wait() == 0
    assert "no GPU of this node has a power limit of a cap" in restoring.said()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_a_cap:
        BOOK.share_out(metafunc)


@pytest.fixture
def outcomes(
    request: pytest.FixtureRequest, told: tuple[Story, ...], plane: ControlPlane, crd: None
) -> Outcomes:
    """How each story went."""
    del crd  # needed to be there
    return BOOK.tell(told, request, plane)


def test_a_cap(outcomes: Outcomes, subtests: pytest.Subtests) -> None:
    judge(outcomes, subtests)
