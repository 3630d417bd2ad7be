"""What an agent tells: conditions for people, metrics for Prometheus, readiness for the kubelet, reports for the operator."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from greentrain.agent.host import Host
from greentrain.agent.journal import FILE, Journal
from greentrain.agent.telemetry import HUNG_SECONDS, SILENT_SECONDS, AgentTelemetry
from greentrain.api.nodepower import MAX_PODS, NodePowerStatus, PodEnergy, PowerLimits
from greentrain.api.status import Condition
from greentrain.devices.errors import Gone, Hanging, NotPermitted, Retry, Unavailable, Unsupported
from greentrain.devices.podresources import Claim, ClaimedDevice, Listing
from greentrain.devices.rapl import CpuTime, Rapl
from greentrain.energy.account import NodeAccount
from greentrain.energy.intervals import CardReading
from greentrain.kube.node import parse_last_report
from greentrain.node.cards import Card
from greentrain.quantities import Millijoules, Milliwatts, PowerCap
from tests.unit.agent.ports import Life, World

NO_NVML = Unavailable("NVML", "the driver is not loaded", "Load it (modprobe nvidia).")
NO_KUBELET = Unavailable("The kubelet's socket /k.sock", "nothing came within 10 s", "See whether it runs.")


def break_gpu(error: Exception) -> Callable[[World, Path], None]:
    def apply(world: World, _: Path) -> None:
        world.answers = {"GPU-a": error}  # type: ignore[dict-item]

    return apply


def set_(name: str, value: object) -> Callable[[World, Path], None]:
    def apply(world: World, _: Path) -> None:
        setattr(world, name, value)

    return apply


def hold_unknown(world: World, _: Path) -> None:
    world.hold("a", device="gpu0")


def use_claim(world: World, _: Path) -> None:
    device = ClaimedDevice("gpu.nvidia.com", "pool", "gpu-0", ())
    world.listing = Listing((), (Claim("team", "a", "tensorflow", "mine", "team", (device,)),))


def take_away_disk(_: World, folder: Path) -> None:
    (folder / "journal").write_text("")


def look_at_host(world: World, folder: Path) -> None:
    world.host = Host(Rapl(folder / "powercap"), CpuTime(folder / "cgroup"))


def take_away_cards(world: World, _: Path) -> None:
    world.cards, world.answers = (), {}


def leave(_: World, __: Path) -> None:
    pass


def no_name(world: World, _: Path) -> None:
    world.unnamed = {1: Retry("GPU 1", "NVML answered «Timeout»")}


@dataclass(frozen=True)
class Case:
    when: Callable[[World, Path], None]
    condition: str
    says: str
    """What follows from it, or what to do."""
    also: frozenset[str] = frozenset()
    """What else is said to be wrong then."""


CASES = {
    "all is well: cards": Case(leave, "DevicesReadable=True Read", "1 GPUs are read"),
    "all is well: holders": Case(leave, "HoldersKnown=True Listed", "says which pod holds which GPU"),
    "all is well: disk": Case(
        leave, "JournalWritable=True Written", "what was counted is on this node's disk"
    ),
    "no driver": Case(set_("nvml", NO_NVML), "DevicesReadable=False NvmlUnavailable", "modprobe nvidia"),
    "no card": Case(take_away_cards, "DevicesReadable=True NoGPU", "this node has no GPU"),
    "a card is lost": Case(
        break_gpu(Gone("GPU-a", "it fell off the bus; drain and reboot the node")),
        "DevicesReadable=False GpuLost",
        "drain and reboot the node. What it uses meanwhile is counted when it answers again.",
    ),
    "a card does not answer": Case(
        break_gpu(Retry("GPU-a", "NVML answered «Unknown Error»")),
        "DevicesReadable=False GpuFailing",
        "What it uses meanwhile is counted when it answers again.",
    ),
    "a card cannot be named": Case(
        no_name,
        "DevicesReadable=False GpuFailing",
        "1 GPUs do not even give their UUID, such as that with index 1: GPU 1 gave no answer",
    ),
    "a card hangs": Case(
        break_gpu(Hanging("GPU-a", 7.0)),
        "DevicesReadable=False GpuFailing",
        "a call has not returned for 7.0 s. What it uses meanwhile is counted when it answers again.",
    ),
    "a card is forbidden": Case(
        break_gpu(NotPermitted("GPU-a", "run the agent's pod privileged")),
        "DevicesReadable=False GpuFailing",
        "run the agent's pod privileged",
    ),
    "the kubelet is silent": Case(
        set_("kubelet", NO_KUBELET),
        "HoldersKnown=Unknown KubeletSilent",
        "Energy is counted on and divided when it answers again.",
    ),
    "the kubelet is too old": Case(
        set_("kubelet", Unsupported("v1.PodResourcesLister/List of the kubelet")),
        "HoldersKnown=Unknown NoPodResources",
        "the kubelet must be 1.15 or newer and serve it.",
    ),
    "a device of no known form": Case(
        hold_unknown,
        "HoldersKnown=False DeviceNotUnderstood",
        "what it uses is not known, and its time is missing",
    ),
    "a ResourceClaim": Case(
        use_claim,
        "HoldersKnown=False DeviceNotUnderstood",
        "request nvidia.com/gpu of a device plugin instead",
    ),
    "no disk": Case(
        take_away_disk,
        "JournalWritable=False WriteFailed",
        "Not a directory; counting goes on in memory",
        frozenset({"CapsAllowed=False NoJournal"}),
    ),
    "no disk: caps": Case(
        take_away_disk,
        "CapsAllowed=False NoJournal",
        "no limit is changed without it",
        frozenset({"JournalWritable=False WriteFailed"}),
    ),
    "all is well: caps": Case(leave, "CapsAllowed=True Allowed", "set where jobs ask for them"),
    "persistence mode is off": Case(
        set_("cards", (Card("GPU-a", 0, 0, "Tesla V100", partitioned=False, persistence=False),)),
        "CapsAllowed=True PersistenceOff",
        "nvidia-smi -pm 1 makes limits last",
    ),
    "the driver is being replaced": Case(
        set_(
            "paused", "the node's label nvidia.com/gpu.deploy.driver is paused: its driver is being replaced."
        ),
        "DevicesReadable=False Paused",
        "its driver is being replaced. What it uses meanwhile is counted when it answers again.",
    ),
    "no RAPL": Case(
        look_at_host, "HostReadable=False NoRapl", "Energy of processors and memory is not counted."
    ),
}


async def conditions_when(when: Callable[[World, Path], None], folder: Path) -> tuple[Condition, ...]:
    world = World()
    when(world, folder)
    await Life(world, folder).run()
    assert world.status is not None
    return world.status.conditions


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_condition_says_what_follows_or_what_to_do(case: Case, tmp_path: Path) -> None:
    told = {f"{c.type}={c.status} {c.reason}": c.message for c in await conditions_when(case.when, tmp_path)}
    assert case.condition in told
    message = told[case.condition]
    assert case.says in message
    assert "  " not in message
    assert not re.search(r"\.\.|None|Error\(|<class", message), message
    # Nothing else is said to be wrong.
    wrong = {key for key in told if "=True " not in key}
    assert wrong <= {case.condition} | case.also


async def test_a_counter_in_doubt_is_named_with_what_it_did_and_counted(tmp_path: Path) -> None:
    world = World()
    world.hold("a")
    world.answers = {"GPU-a": CardReading(Millijoules(5_000_000), Milliwatts(250_000))}
    life = Life(world, tmp_path)
    await life.run(rounds=5)
    assert world.status is not None
    doubted = next(c for c in world.status.conditions if c.type == "CountersPlausible")
    assert (doubted.status, doubted.reason) == ("False", "CounterFault")
    assert doubted.message.startswith(
        "the energy counter of GPU-a did not grow while the GPU drew power at 2026-"
    )
    assert "reset the GPU or update its driver" in doubted.message
    (gpu,) = world.status.gpus
    assert (gpu.source, gpu.counter_faults, gpu.health) == ("Power", 1, "Healthy")
    assert gpu.joules > 0
    assert gpu.error_joules > 0
    (entry,) = world.status.pods
    assert (entry.counter_faults, entry.estimated_joules) == (1, entry.gpu_joules)


@pytest.mark.parametrize(("watts", "column"), [(330, "330W"), (331, "<unknown>")])
async def test_power_that_no_card_draws_is_not_shown(tmp_path: Path, watts: int, column: str) -> None:
    limits = PowerLimits(max_milliwatts=Milliwatts(300_000))
    world = World(cards=(Card("GPU-a", 0, 0, "Tesla V100", partitioned=False, limits=limits),))
    world.answers = {"GPU-a": CardReading(Millijoules(5), Milliwatts(watts * 1000))}
    await Life(world, tmp_path).run()
    assert world.status is not None
    assert world.status.display.draw == column


def scrape(telemetry: AgentTelemetry) -> dict[tuple[str, ...], float]:
    """Values by name and labels, as Prometheus would keep them."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(telemetry.render().decode()):
        assert family.documentation.endswith(".")
        for sample in family.samples:
            key = (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items())))
            assert key not in found, f"told twice: {key}"
            found[key] = sample.value
    return found


async def test_metrics_have_units_in_their_names_and_say_whose_they_are(tmp_path: Path) -> None:
    world = World(caps={"uid-a": PowerCap(milliwatts=Milliwatts(150_000))})
    world.hold("a")
    life = Life(world, tmp_path)
    telemetry = AgentTelemetry(life.agent, life.clock, CollectorRegistry())
    await life.look()
    world.limit = 200_000  # an administrator's
    world.answers = {"GPU-a": CardReading(counter=Millijoules(8_500), draw=Milliwatts(250_500), busy=True)}
    await life.look()
    account = life.agent.account
    account.idle, account.unattributed, account.dropped = Millijoules(1_500), Millijoules(2_500), 3
    account.pods["team/a/uid-a"].cpu = Millijoules(7_000)
    life.pass_time(4)
    card = ("gpu=GPU-a", "model=Tesla V100")
    pod = ("job=digits", "namespace=team", "pod=a", "uid=uid-a")
    assert scrape(telemetry) == {
        ("greentrain_gpu_energy_joules_total", *card): 3.5,
        ("greentrain_gpu_power_watts", *card): 250.5,
        ("greentrain_gpu_readable", *card): 1.0,
        ("greentrain_gpu_counter_faults_total", *card): 0.0,
        ("greentrain_pod_energy_joules_total", "device=gpu", *pod): 3.5,
        ("greentrain_pod_energy_joules_total", "device=cpu", *pod): 7.0,
        ("greentrain_idle_energy_joules_total",): 1.5,
        ("greentrain_unattributed_energy_joules_total",): 2.5,
        ("greentrain_last_look_age_seconds",): 5.0,
        ("greentrain_dropped_pods_total",): 3.0,
        ("greentrain_gpu_power_cap_asked_watts", *card): 150.0,
        ("greentrain_gpu_power_cap_target_watts", *card): 150.0,
        ("greentrain_gpu_power_limit_previous_watts", *card): 200.0,
        ("greentrain_gpu_power_limit_watts", *card): 150.0,
        ("greentrain_gpu_power_limit_enforced_watts", *card): 150.0,
        ("greentrain_gpu_power_cap_in_force", *card, "reason=Capped"): 1.0,
        ("greentrain_gpu_power_limit_foreign_changes_total", *card): 1.0,
        ("greentrain_gpu_power_limit_restores_total", *card): 0.0,
    }


async def test_a_card_that_does_not_answer_keeps_its_energy_and_tells_no_power(tmp_path: Path) -> None:
    world = World()
    life = Life(world, tmp_path)
    telemetry = AgentTelemetry(life.agent, life.clock, CollectorRegistry())
    await life.look()
    world.answers = {"GPU-a": Retry("GPU-a", "NVML answered «Timeout»")}
    await life.look()
    found = scrape(telemetry)
    card = ("gpu=GPU-a", "model=Tesla V100")
    assert found["greentrain_gpu_readable", *card] == 0.0
    assert found["greentrain_gpu_energy_joules_total", *card] == 0.0
    assert ("greentrain_gpu_power_watts", *card) not in found


async def test_a_pod_and_the_one_of_its_name_before_it_are_two(tmp_path: Path) -> None:
    world = World()
    life = Life(world, tmp_path)
    telemetry = AgentTelemetry(life.agent, life.clock, CollectorRegistry())
    for uid in ("old", "new"):
        life.agent.account.open(f"team/a/{uid}", namespace="team", name="a", uid=uid)
    assert sum(key[0] == "greentrain_pod_energy_joules_total" for key in scrape(telemetry)) == 2


def test_before_the_first_look_ages_are_unknown_and_not_zero(tmp_path: Path) -> None:
    life = Life(World(), tmp_path)
    telemetry = AgentTelemetry(life.agent, life.clock, CollectorRegistry())
    age = scrape(telemetry)["greentrain_last_look_age_seconds",]
    assert age != age
    assert telemetry.unready() == "the GPUs and their allocations have not been read yet"
    assert telemetry.unhealthy() is None


async def test_a_node_that_was_never_seen_to_have_a_gpu_is_ready_without_nvml(tmp_path: Path) -> None:
    """Else an agent on each node without GPUs would hold up every update of the DaemonSet."""
    world = World()
    world.nvml = NO_NVML
    life = Life(world, tmp_path)
    telemetry = AgentTelemetry(life.agent, life.clock, CollectorRegistry())
    await life.look(int(SILENT_SECONDS) + 1)
    assert telemetry.unready() is None
    assert any(c.type == "DevicesReadable" and c.status == "False" for c in life.agent.conditions)


@pytest.mark.parametrize(
    ("fault", "value", "words"),
    [
        (
            "kubelet",
            NO_KUBELET,
            "HoldersKnown: The kubelet's socket /k.sock cannot be used: nothing came within 10 s",
        ),
        ("nvml", NO_NVML, "DevicesReadable: NVML cannot be used: the driver is not loaded. Load it"),
    ],
    ids=["kubelet", "NVML"],
)
@pytest.mark.parametrize("from_the_start", [True, False], ids=["from the start", "later"])
async def test_it_is_unready_where_nothing_is_counted_and_says_why(
    fault: str, value: Exception, words: str, from_the_start: bool, tmp_path: Path
) -> None:
    world = World()
    world.hold("a")
    life = Life(world, tmp_path)
    telemetry = AgentTelemetry(life.agent, life.clock, CollectorRegistry())
    if not from_the_start:
        await life.look()
        assert telemetry.unready() is None
    setattr(world, fault, value)
    await life.look()
    if not from_the_start:
        assert telemetry.unready() is None
        await life.look(int(SILENT_SECONDS) + 1)
    said = telemetry.unready()
    assert said is not None
    assert words in said
    assert telemetry.unhealthy() is None
    setattr(world, fault, None)
    await life.look(11)
    assert telemetry.unready() is None


async def test_it_is_alive_while_its_loop_goes_round_and_for_a_while_after(tmp_path: Path) -> None:
    life = Life(World(), tmp_path)
    telemetry = AgentTelemetry(life.agent, life.clock, CollectorRegistry())
    life.pass_time(HUNG_SECONDS - 1)
    assert telemetry.unhealthy() is None
    await life.run()
    life.pass_time(HUNG_SECONDS - 2)
    assert telemetry.unhealthy() is None
    life.pass_time(2)
    assert telemetry.unhealthy() == "the loop has not gone round for 301 s"


async def test_a_report_holds_as_many_pods_as_fit_those_that_live_among_them(tmp_path: Path) -> None:
    world = World()
    world.hold("zz-lives")
    account = NodeAccount(journal_id="j")
    for i in range(MAX_PODS + 50):
        name = f"ended-{i:05}"
        account.open(f"team/{name}/{name}", namespace="team", name=name, uid=name)
        account.close(f"team/{name}/{name}", wall=1_767_226_500.0)
    (tmp_path / "journal").mkdir()
    Journal(tmp_path / "journal").store(account.to_json())
    await Life(world, tmp_path).run()
    assert world.status is not None
    assert len(world.status.pods) == MAX_PODS
    assert "zz-lives" in {p.name for p in world.status.pods}


BEFORE = NodePowerStatus(
    journal_id="before",
    pods=(PodEnergy(uid="u", namespace="team", name="p", gpu_joules=77, closed=True),),
)


@pytest.mark.parametrize("rounds", [0, 1, 3], ids=["at once", "after one round", "after three"])
async def test_what_an_earlier_journal_told_is_told_on_whenever_the_agent_is_stopped(
    rounds: int, tmp_path: Path
) -> None:
    world = World(status=BEFORE)
    await Life(world, tmp_path).run(rounds)
    assert world.status is not None
    assert world.status.journal_id != "before"
    assert [(p.uid, p.gpu_joules, p.closed) for p in world.status.pods] == [("u", 77, True)]
    # And by the next one, which has it from the disk.
    later = World()
    await Life(later, tmp_path).run()
    assert later.status is not None
    assert [p.uid for p in later.status.pods] == ["u"]


async def test_a_journal_that_has_counted_but_never_reported_inherits_too(tmp_path: Path) -> None:
    world = World()
    await Life(world, tmp_path).run(rounds=2)
    world.status = BEFORE
    await Life(world, tmp_path).run()
    assert [p.uid for p in world.status.pods] == ["u"]


async def test_what_was_told_before_the_journal_was_damaged_is_told_on(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / FILE).write_bytes(b"\x00" * 64)
    world = World(status=BEFORE)
    await Life(world, tmp_path).run()
    assert world.status is not None
    assert [p.uid for p in world.status.pods] == ["u"]


async def test_its_own_last_report_is_not_inherited(tmp_path: Path) -> None:
    world = World()
    world.hold("a")
    for _ in range(3):
        await Life(world, tmp_path).run(rounds=2)
    assert world.status is not None
    assert [(p.uid, p.segment, p.closed) for p in world.status.pods] == [("uid-a", 0, False)]


def test_of_a_report_of_another_version_every_pod_that_can_be_read_is_kept() -> None:
    entry = {"uid": "u", "namespace": "team", "name": "p", "gpuJoules": 5}
    status = {
        "journalId": "j",
        "gpus": [{"uuid": "GPU-a", "health": "Dreaming"}],
        "pods": [entry, {**entry, "uid": "v", "gpuJoules": "many"}, {**entry, "uid": "w", "new": 1}],
    }
    found = parse_last_report(status)
    assert (found.journal_id, [p.uid for p in found.pods]) == ("j", ["u", "w"])


async def test_a_report_says_where_the_node_is_how_often_it_comes_and_what_its_pods_draw(
    tmp_path: Path,
) -> None:
    world = World()
    world.hold("a")
    life = Life(world, tmp_path)
    for second in range(5):
        world.answers = {
            "GPU-a": CardReading(counter=Millijoules(5_000 + second * 250_000), draw=Milliwatts(249_600))
        }
        await life.look()
    told = life.agent.build_status()
    assert (told.display.draw, told.display.unattributed) == ("250W", "0J")
    assert (told.report_interval_seconds, told.region, told.zone) == (30, "eu-central-1", "eu-central-1a")
    (pod,) = told.pods
    assert pod.draw_milliwatts == 250_000
    assert [(t.model, t.seconds) for t in pod.gpu_time] == [("Tesla V100", 4)]


async def test_time_goes_on_over_an_agents_end_and_draw_does_not(tmp_path: Path) -> None:
    world = World()
    world.hold("a")
    await Life(world, tmp_path).run(rounds=5)
    later = Life(world, tmp_path)
    later.pass_time(100)
    await later.run(rounds=1)
    assert world.status is not None
    (pod,) = world.status.pods
    assert (pod.draw_milliwatts, [t.seconds for t in pod.gpu_time]) == (None, [100])
