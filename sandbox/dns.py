"""The cluster's DNS: watches Services and Endpoints and keeps dnsmasq's names, since Debian packages no CoreDNS.

Run as `python3 -m sandbox.dns DIRECTORY`. Served are what Kubernetes' DNS specification asks of A records: a Service's
cluster address under its name, a headless Service's ready pods under its name (all pods when it publishes addresses
that are not ready), and each such pod with a hostname as `{hostname}.{service}.{namespace}.svc.cluster.local`. The
same names without `cluster.local` are answered too, because TensorFlow's cluster descriptions use them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sandbox.api import Api, ApiError, Json
from sandbox.controlplane import build_api
from sandbox.node import CLUSTER_DOMAIN
from sandbox.state import DNS_ADDRESS, Program, Sandbox, read_records

Key = tuple[str, str]
"""Namespace and name."""

WATCH_SECONDS = 300.0
SETTLE_SECONDS = 0.05
"""Changes within this time are written at once: a job's pods come in bursts."""


def build_dnsmasq_command(hosts: Path) -> list[str]:
    """Run dnsmasq on the link that joins the nodes, answering from `hosts` alone and for nothing outside the cluster."""
    return [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--pid-file=",
        "--bind-interfaces",
        f"--listen-address={DNS_ADDRESS}",
        "--except-interface=lo",
        "--no-resolv",
        "--no-hosts",
        # Without these dnsmasq answers REFUSED, which resolvers report as «Temporary failure in name resolution».
        f"--local=/{CLUSTER_DOMAIN}/",
        "--local=/svc/",
        "--local=//",
        f"--addn-hosts={hosts}",
        "--local-ttl=1",
        "--neg-ttl=1",
        "--cache-size=0",
        "--dns-forward-max=1000",
    ]


def build_names(service: Json, endpoints: Json | None) -> set[tuple[str, str]]:
    """The (address, name) pairs one Service stands for; names without the cluster's domain."""
    namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
    base = f"{name}.{namespace}.svc"
    spec = service.get("spec", {})
    address = spec.get("clusterIP", "")
    if address and address != "None":
        return {(address, base)}
    if spec.get("type") == "ExternalName" or endpoints is None:
        return set()
    pairs: set[tuple[str, str]] = set()
    for subset in endpoints.get("subsets") or []:
        listed = list(subset.get("addresses") or [])
        if spec.get("publishNotReadyAddresses"):
            listed += subset.get("notReadyAddresses") or []
        for entry in listed:
            pairs.add((entry["ip"], base))
            if entry.get("hostname"):
                pairs.add((entry["ip"], f"{entry['hostname']}.{base}"))
    return pairs


def build_hosts(services: Mapping[Key, Json], endpoints: Mapping[Key, Json]) -> str:
    """The text of dnsmasq's hosts file for all Services, sorted, so that the same world gives the same text."""
    pairs: set[tuple[str, str]] = set()
    for key, service in services.items():
        pairs |= build_names(service, endpoints.get(key))
    return "".join(f"{address} {name}.{CLUSTER_DOMAIN} {name}\n" for address, name in sorted(pairs))


def apply_event(objects: dict[Key, Json], event: Json) -> str:
    """Bring one watch event into `objects`; returns the resource version reached.

    Raises:
        ApiError: the server says that the watch is too old; list again.
    """
    found = cast(Json, event["object"])
    if event["type"] == "ERROR":
        raise ApiError(int(found.get("code", 0)), str(found.get("message", "the watch ended")))
    metadata = found["metadata"]
    if event["type"] != "BOOKMARK":
        key = (metadata["namespace"], metadata["name"])
        if event["type"] == "DELETED":
            objects.pop(key, None)
        else:
            objects[key] = found
    return str(metadata["resourceVersion"])


class Mirror:
    """A kept copy of one resource of all namespaces that survives the server's restarts."""

    def __init__(self, api: Api, path: str, changed: threading.Event, lock: threading.Lock) -> None:
        self.objects: dict[Key, Json] = {}
        self.listed = False
        self._api = api
        self._path = path
        self._changed = changed
        self._lock = lock

    def follow(self) -> None:
        """List and watch without end."""
        while True:
            try:
                self._follow_once()
            except ApiError as error:
                # The server is down or restarting: what was known stays served meanwhile.
                print(f"{self._path}: {error}; listing again in a second", flush=True)
                time.sleep(1.0)

    def _follow_once(self) -> None:
        found = self._api.get(self._path)
        version = str(found["metadata"]["resourceVersion"])
        with self._lock:
            self.objects.clear()
            for item in cast(list[dict[str, Any]], found.get("items") or []):
                self.objects[item["metadata"]["namespace"], item["metadata"]["name"]] = item
            self.listed = True
        self._changed.set()
        while True:
            for event in self._api.watch(self._path, version, timeout=WATCH_SECONDS):
                with self._lock:
                    version = apply_event(self.objects, event)
                self._changed.set()


def serve(sandbox: Sandbox) -> None:
    """Keep the hosts file and dnsmasq up to date without end."""
    changed, lock = threading.Event(), threading.Lock()
    api = build_api(sandbox.server)
    services = Mirror(api, "/api/v1/services", changed, lock)
    endpoints = Mirror(api, "/api/v1/endpoints", changed, lock)
    for mirror in (services, endpoints):
        threading.Thread(target=mirror.follow, daemon=True).start()
    hosts = sandbox.directory / "hosts"
    written = hosts.read_text() if hosts.exists() else ""
    while True:
        changed.wait()
        time.sleep(SETTLE_SECONDS)
        changed.clear()
        with lock:
            if not (services.listed and endpoints.listed):
                continue
            text = build_hosts(services.objects, endpoints.objects)
        if text == written:
            continue
        partial = hosts.with_suffix(".partial")
        partial.write_text(text)
        partial.rename(hosts)
        written = text
        server = read_records(sandbox).get("dnsmasq")
        if server is not None:
            reload(server)


def reload(server: Program) -> None:
    """Have dnsmasq read its names anew; once it can: a SIGHUP before it has its handler would end it."""
    while server.is_alive():
        if catches(server.pid, signal.SIGHUP):
            os.kill(server.pid, signal.SIGHUP)
            return
        time.sleep(SETTLE_SECONDS)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal (proc(5), SigCgt)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(mask, 16) >> (number - 1) & 1)


if __name__ == "__main__":
    serve(Sandbox(Path(sys.argv[1])))
