"""`python -m greentrain.agent`: the agent; `restore`: restore limits without an agent; `retire`: end all agents."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys

from prometheus_client import CollectorRegistry

from greentrain.agent.allowances import Allowances
from greentrain.agent.caps import Caps
from greentrain.agent.clock import MachineClock
from greentrain.agent.host import Host
from greentrain.agent.journal import Journal, TakenError
from greentrain.agent.loop import Agent
from greentrain.agent.ports import Machine
from greentrain.agent.retire import retire
from greentrain.agent.settings import AgentSettings, parse_settings
from greentrain.agent.telemetry import AgentTelemetry
from greentrain.devices.errors import Unavailable
from greentrain.devices.nvidia.nvml import Gpus
from greentrain.devices.podresources import PodResources
from greentrain.devices.rapl import CpuTime, Rapl
from greentrain.kube.client import connect
from greentrain.kube.node import NodeView
from greentrain.quantities import format_power
from greentrain.telemetry.logs import configure_logs
from greentrain.telemetry.serving import serve

logger = logging.getLogger("greentrain.agent")

TAKEN_RETRY_SECONDS = 2.0

RETIRE_SECONDS = 90.0
"""How long agents have to end: three times their grace period."""


async def run(settings: AgentSettings) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.command == "restore":
        return await restore(settings, stop)
    if settings.command == "retire":
        return await retire_all(settings, stop)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(await connect(settings.kubeconfig, settings.context))
        journal = Journal(settings.journal)
        stack.callback(journal.close)
        taken = await take(journal, stop)
        if stop.is_set():
            return 0
        clock = MachineClock()
        view = NodeView(
            client, settings.node, lease=settings.operator_lease, elapsed=clock.elapsed, wall=clock.wall
        )
        kubelet = await stack.enter_async_context(
            PodResources(settings.kubelet_socket, counts=settings.gpu_resources.counts)
        )
        cpu_time = CpuTime(settings.cgroup_root)
        host = Host(Rapl(settings.powercap_root), cpu_time)
        agent = Agent(
            settings,
            Machine(clock, Gpus.open, kubelet, host, cpu_time.find_pods),
            view=view,
            journal=journal,
            caps=Caps(journal, clock, driver=settings.driver_module, dry_run=settings.dry_run, allowed=taken),
            allowances=Allowances(journal, clock, view, allowed=taken),
        )
        if settings.http_port:
            telemetry = AgentTelemetry(agent, clock, CollectorRegistry())
            runner = await serve(
                settings.http_port,
                unhealthy=telemetry.unhealthy,
                unready=telemetry.unready,
                render=telemetry.render,
            )
            stack.push_async_callback(runner.cleanup)
        following = asyncio.create_task(view.follow(), name="follow")
        # It never ends by itself; if it does, only a new process can read the present state.
        following.add_done_callback(lambda _: stop.set())
        try:
            await agent.run(stop)
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
    return 0


async def retire_all(settings: AgentSettings, stop: asyncio.Event) -> int:
    """End the agents of all nodes; 1 where some GPU may keep the limit of a cap, or this was stopped first."""
    async with await connect(settings.kubeconfig, settings.context) as client:
        work = asyncio.create_task(
            retire(client, *settings.daemonset, settings.selector, patience=RETIRE_SECONDS)
        )
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if work.done():
            return await work
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        return 1


async def restore(settings: AgentSettings, stop: asyncio.Event) -> int:
    """Restore the limit that every card had before a cap; 1 where that fails for some card."""
    with contextlib.closing(Journal(settings.journal)) as journal:
        if not await take(journal, stop):
            return 1
        caps = Caps(journal, MachineClock(), driver=settings.driver_module)
        if not caps.load():
            logger.error(
                "which power limits were changed is not known: nvidia-smi -q -d POWER shows limits and defaults"
            )
            return 1
        if not caps.changed_cards:
            logger.info("no GPU of this node has a power limit of a cap")
            return 0
        try:
            async with await Gpus.open() as gpus:
                done = await caps.give_back(gpus, await gpus.discover())
        except Unavailable as error:
            logger.error("%s", error)
            done = False
        for uuid in caps.changed_cards:
            prior = format_power(caps.priors[uuid])
            logger.error(
                "%s: its previous power limit of %s is not restored (nvidia-smi -i %s -pl …)",
                uuid,
                prior,
                uuid,
            )
        return 0 if done else 1


async def take(journal: Journal, stop: asyncio.Event) -> bool:
    """Wait for the journal of this node; False where it cannot be had, or the agent was stopped first."""
    while not stop.is_set():
        try:
            journal.take()
        except TakenError as error:
            logger.warning("%s", error)
        except OSError as error:
            # Without a disk the agent still counts, and the condition JournalWritable is False. No limit is
            # changed then.
            logger.error("the journal %s: %s", error.filename, error.strerror)
            return False
        else:
            return True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), TAKEN_RETRY_SECONDS)
    return False


def main() -> None:
    """Parse the command line and run."""
    settings = parse_settings(sys.argv[1:])
    configure_logs(settings.log_level, settings.log_format)
    gc.collect()
    gc.freeze()  # what was imported stays: the cyclic collector need not traverse it each time
    sys.exit(asyncio.run(run(settings)))


if __name__ == "__main__":
    main()
