"""The sandbox's network is a cluster's: each node answers for itself, and the API server's machine reaches Services."""

from __future__ import annotations

import urllib.request
from typing import Any

from tests.e2e.conftest import Bench
from tests.e2e.jobs import PLAIN_IMAGE

Json = dict[str, Any]

SERVE = """
import http.server, os
class Name(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["NODE"].encode())
http.server.ThreadingHTTPServer(("", 8080), Name).serve_forever()
"""
"""Answers every request with the name of the node it runs on."""

ASK = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())
except urllib.error.URLError as error:
    print(error)
"""


def build_echo(node: str) -> Json:
    """A pod of one node that answers with that node's name."""
    reference = {"fieldRef": {"fieldPath": "spec.nodeName"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"echo-{node}", "labels": {"app": "echo"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "echo",
                    "image": PLAIN_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-c", SERVE],
                    "env": [{"name": "NODE", "valueFrom": reference}],
                    "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1},
                }
            ],
        },
    }


def build_service(name: str, policy: str) -> Json:
    """A Service over those pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": {"app": "echo"},
            "ports": [{"port": 80, "targetPort": 8080}],
            "internalTrafficPolicy": policy,
        },
    }


def test_a_service_with_local_traffic_answers_with_the_callers_node_and_others_are_reached_from_the_machine(
    bench: Bench,
) -> None:
    nodes = [node.name for node in bench.sandbox.started_nodes()]
    assert len(nodes) == 2
    bench.apply(
        *(build_echo(node) for node in nodes), build_service("near", "Local"), build_service("any", "Cluster")
    )
    bench.kubectl("wait", "--for=condition=Ready", "pod", "--selector=app=echo", "--timeout=120s")

    def ask(node: str, service: str) -> str:
        url = f"http://{service}.{bench.namespace}.svc"
        return bench.kubectl("exec", f"echo-{node}", "--", "python3", "-c", ASK, url).strip()

    def answers() -> set[str]:
        """Who answers for any node; until a kube-proxy has the rules, there is no route to a Service at all."""
        return {ask(node, "any") for node in nodes for _ in range(5)} | {ask(node, "near") for node in nodes}

    bench.until(
        lambda: sorted(answers()),
        lambda seen: seen == nodes,
        seconds=60,
        what="both nodes answer for the Service",
    )
    for node in nodes:
        assert {ask(node, "near") for _ in range(8)} == {node}
    address = bench.read("service", "any")["spec"]["clusterIP"]
    with urllib.request.urlopen(f"http://{address}", timeout=10) as answer:
        assert answer.read().decode() in nodes
