"""Says in words what of the sandbox runs."""

from __future__ import annotations

from sandbox import volume
from sandbox.api import ApiError
from sandbox.controlplane import build_api
from sandbox.simgpu import nodecards
from sandbox.state import Sandbox, read_records
from sandbox.up import describe_use, is_node_ready, read_allocatable_gpus


def describe(sandbox: Sandbox) -> tuple[bool, str]:
    """Whether everything that was started runs and answers, and the same in lines for a person."""
    records = read_records(sandbox)
    if not records:
        return False, f"No sandbox in {sandbox.directory}; start one with: make sandbox-up"
    lines = [f"sandbox in {sandbox.directory}"]
    healthy = True
    for name, program in records.items():
        alive = program.is_alive()
        healthy = healthy and alive
        lines.append(
            f"  {name:<26} {f'runs, process {program.pid}' if alive else f'has ended, see {sandbox.log / name}.log'}"
        )
    api = build_api(sandbox.server)
    ready = api.is_ready()
    healthy = healthy and ready
    lines.append(f"  {'API server':<26} {'ready at ' if ready else 'not ready at '}{sandbox.server.url}")
    if ready:
        for node in sandbox.started_nodes():
            node_ready = is_node_ready(api, node)
            healthy = healthy and node_ready
            lines.append(f"  {node.name:<26} {'Ready' if node_ready else 'not Ready'}")
            gpus = nodecards.read_note(node)
            if gpus is not None and gpus.cards:
                there = read_allocatable_gpus(api, node)
                healthy = healthy and there == gpus.cards
                lines.append(f"  {f'GPUs of {node.name}':<26} {gpus}, {there or 0} for pods to ask for")
        try:
            phase = api.get(volume.VOLUME_PATH).get("status", {}).get("phase", "unknown")
        except ApiError:
            phase, healthy = "missing", False
        lines.append(f"  {'shared volume':<26} {phase}, {sandbox.volume}")
    if healthy:
        lines.append(describe_use(sandbox))
    else:
        lines.append("Not everything runs; start afresh with: make sandbox-up")
    return healthy, "\n".join(lines)
