"""The sandbox's commands: `python3 -m sandbox up|down|status|power-off|power-on|packages|binaries|import|images|environment|demo|kueue`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from sandbox import binaries, node, outage, packages
from sandbox.cache import read_cache_directory
from sandbox.down import remove_sandbox, sweep
from sandbox.shell import SandboxError
from sandbox.state import Sandbox, parse_node_count, read_node_count
from sandbox.status import describe
from sandbox.steps import run_steps
from sandbox.up import bring_up, check_owner, hold_lock

PARTS = {
    "images": "build the images that changed",
    "environment": "bring .venv to what requirements/dev.txt says",
    "demo": "run examples/budgeted.yaml",
    "kueue": "add Kueue to the sandbox that is up",
}
"""Commands with options of their own: each is `main` of the module of its name."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m sandbox",
        description="A real Kubernetes of one or two nodes on this Debian 12 machine.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="bring it up, installing and building what is missing")
    up.add_argument("--nodes", help="1 or 2 (default: $GREENTRAIN_SANDBOX_NODES, else 1)")
    commands.add_parser("down", help="remove it: processes, mounts, network, cgroups and state")
    commands.add_parser("status", help="say what runs")
    for word, about in (
        ("power-off", "end everything that runs on a node, as if its plug were pulled"),
        ("power-on", "start such a node again"),
    ):
        commands.add_parser(word, help=about).add_argument("node", help="node1 or node2")
    commands.add_parser("packages", help="install the Debian packages that are missing")
    commands.add_parser("binaries", help="find or build Kubernetes' programs and say where they are")
    importing = commands.add_parser("import", help="import an image archive into every node")
    importing.add_argument("archive", type=Path, help="an OCI or Docker image archive (tar)")
    for name, about in PARTS.items():
        commands.add_parser(name, help=about)
    return parser


def _describe_rest(sandbox: Sandbox) -> str:
    rest = f"Logs stay in {sandbox.log}"
    if sandbox.previous_volume.is_dir():
        rest += f", the volume's files in {sandbox.previous_volume}"
    return f"{rest}."


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A build runs in a session of its own: a `kill` of this program or a closed terminal must end it too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        if words and words[0] in PARTS:
            return int(importlib.import_module(f"sandbox.{words[0]}").main(words[1:]))
        return _run(_parser().parse_args(words))
    except SandboxError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What was started stays until: make sandbox-down", file=sys.stderr)
        return 130


def _run(asked: argparse.Namespace) -> int:
    sandbox = Sandbox.read()
    cache = read_cache_directory()
    if asked.command != "binaries":
        packages.check_root()
    match asked.command:
        case "up":
            count = read_node_count() if asked.nodes is None else parse_node_count(asked.nodes, "--nodes")
            print(bring_up(sandbox, count))
        case "down":
            with hold_lock():
                check_owner(sandbox)
                removed = remove_sandbox(sandbox)
                sweep(sandbox)
            if removed:
                print(f"Removed {'; '.join(removed)}. {_describe_rest(sandbox)}")
            else:
                print("Nothing of the sandbox was there.")
        case "status":
            healthy, text = describe(sandbox)
            print(text)
            return 0 if healthy else 1
        case "power-off":
            with hold_lock():
                count = outage.power_off(sandbox, outage.find_node(sandbox, asked.node))
            print(f"{asked.node} is off: {count} processes ended. Kubernetes says so in about 45 seconds.")
        case "power-on":
            with hold_lock():
                outage.power_on(sandbox, outage.find_node(sandbox, asked.node))
            print(f"{asked.node} is on and ready.")
        case "packages":
            run_steps([packages.build_step(cache)])
        case "binaries":
            run_steps([binaries.build_step(cache)])
            found = binaries.gather_binaries()
            print("\n".join(f"{name}: {path}" for name, path in vars(found).items()))
        case "import":
            print(f"Imported {asked.archive} into {', '.join(node.import_image(asked.archive, sandbox))}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
