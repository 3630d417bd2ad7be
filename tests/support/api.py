"""A raw HTTP client of a kube-apiserver, independent of the product's own, and a hand that plays the kubelet."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import io
import json
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml

Json = dict[str, Any]
JOBS = "/apis/greentrain.dev/v1alpha1/namespaces/{}/greentrainingjobs"
ROOT = Path(__file__).parents[2]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
MERGE = "application/merge-patch+json"

POD_ADDRESS = f"127.0.0.{2 + int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0')[2:])}"
"""Where the pods of this process's tests are: the port of `/progress` is always the same, and workers run side by side."""


class RefusedError(Exception):
    """The server answered with an error status."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(f"{status}: {body.get('message')}")
        self.status = status
        self.body = body


class Server:
    """One API server, spoken to in plain JSON."""

    def __init__(self, kubeconfig: Path, *, token: str | None = None) -> None:
        """As the kubeconfig's user, or as the one a bearer token names."""
        config = yaml.safe_load(kubeconfig.read_text())
        self.url: str = config["clusters"][0]["cluster"]["server"]
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._tls = ssl.create_default_context(cadata=_read(cluster, "certificate-authority").decode())
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        if token is None:  # a certificate would count before the token
            with tempfile.TemporaryDirectory() as folder:
                cert, key = Path(folder, "crt"), Path(folder, "key")
                cert.write_bytes(_read(user, "client-certificate"))
                key.write_bytes(_read(user, "client-key"))
                self._tls.load_cert_chain(cert, key)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Server:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls), headers=self._headers, trust_env=False
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def call(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json"
    ) -> Json:
        """Send one request; RefusedError for an error status."""
        assert self._session is not None
        async with self._session.request(
            method,
            self.url + path,
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type},
        ) as answer:
            text = await answer.text()
            found: Json = json.loads(text) if text.startswith("{") else {"message": text}
            if answer.status >= 300:
                raise RefusedError(answer.status, found)
            return found

    async def send(
        self, method: str, path: str, text: str, *, content_type: str = "application/json"
    ) -> None:
        """Send a JSON text as it is, and leave the answer unread: either may be too deep for Python."""
        assert self._session is not None
        headers = {"Content-Type": content_type}
        data = io.BytesIO(text.encode())  # of a text of megabytes aiohttp warns
        async with self._session.request(method, self.url + path, data=data, headers=headers) as answer:
            if answer.status >= 300:
                raise RefusedError(answer.status, json.loads(await answer.text()))

    async def install_crds(self, *names: str) -> None:
        """Install the committed CRDs, or those of these names, and wait until they are served."""
        for file in sorted((ROOT / "crds").glob("*.yaml")):
            body = yaml.safe_load(file.read_text())
            name = body["metadata"]["name"]
            if names and name not in names:
                continue
            await self.call("POST", CRDS, body)
            await self.until(
                functools.partial(self.call, "GET", f"{CRDS}/{name}"),
                lambda crd: any(
                    c["type"] == "Established" and c["status"] == "True"
                    for c in crd["status"].get("conditions") or ()
                ),
            )

    async def request_token(
        self, namespace: str, account: str, *, pod: Json | None = None, audiences: Sequence[str] = ()
    ) -> str:
        """A ServiceAccount's token: bound to a pod as the kubelet asks for it, or to nothing as `kubectl create token` does."""
        spec: Json = {"audiences": list(audiences), "expirationSeconds": 3600}
        if pod is not None:
            meta = pod["metadata"]
            spec["boundObjectRef"] = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": meta["name"],
                "uid": meta["uid"],
            }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        made = await self.call("POST", path, body)
        return str(made["status"]["token"])

    async def create_job(self, namespace: str, manifest: Json) -> Json:
        """POST a job raw: no client-side validation of any kind."""
        return await self.call("POST", JOBS.format(namespace), manifest)

    async def job(self, namespace: str, name: str) -> Json:
        """GET a job."""
        return await self.call("GET", f"{JOBS.format(namespace)}/{name}")

    async def patch_job(self, namespace: str, name: str, patch: Json) -> Json:
        """Merge-patch a job."""
        return await self.call("PATCH", f"{JOBS.format(namespace)}/{name}", patch, content_type=MERGE)

    async def pods(self, namespace: str) -> dict[str, Json]:
        """All pods of a namespace by name."""
        found = await self.call("GET", f"/api/v1/namespaces/{namespace}/pods")
        return {p["metadata"]["name"]: p for p in found["items"]}

    async def events(self, namespace: str) -> list[Json]:
        """All events of a namespace."""
        found = await self.call("GET", f"/api/v1/namespaces/{namespace}/events")
        return list(found["items"])

    async def set_pod_status(self, namespace: str, name: str, status: Json) -> None:
        """Write a pod's status, as its kubelet would."""
        await self.call(
            "PATCH",
            f"/api/v1/namespaces/{namespace}/pods/{name}/status",
            {"status": status},
            content_type=MERGE,
        )

    async def run_pod(self, namespace: str, name: str, *, node: str = "node-1") -> None:
        """Play the scheduler and the kubelet: the pod is bound to a node (else a deletion would not wait), runs, is ready."""
        binding = {"metadata": {"name": name}, "target": {"kind": "Node", "name": node}}
        await self.call("POST", f"/api/v1/namespaces/{namespace}/pods/{name}/binding", binding)
        state = {"running": {"startedAt": timestamp()}}
        await self.set_pod_status(namespace, name, container_status("Running", state, ready=True))

    async def end_pod(
        self, namespace: str, name: str, exit_code: int, *, message: str = "", reason: str = ""
    ) -> None:
        """Play the kubelet: the tensorflow container ends."""
        terminated = {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "startedAt": timestamp(),
            "finishedAt": timestamp(),
            "message": message,
        }
        phase = "Succeeded" if exit_code == 0 else "Failed"
        await self.set_pod_status(namespace, name, container_status(phase, {"terminated": terminated}))

    async def remove_pod(self, namespace: str, name: str) -> None:
        """Play the kubelet: a terminated pod's object is removed."""
        await self.call("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", {"gracePeriodSeconds": 0})

    async def clear_terminating(self, namespace: str) -> dict[str, Json]:
        """Play the kubelet: pods that are being deleted end and go; returns the pods there were before."""
        found = await self.pods(namespace)
        for name, pod in found.items():
            if pod["metadata"].get("deletionTimestamp"):
                try:
                    await self.remove_pod(namespace, name)
                except RefusedError as error:
                    if error.status != 404:  # deleted again once it had ended, a pod goes by itself
                        raise
        return found

    async def until(
        self, look: Callable[[], Any], accept: Callable[[Any], bool], *, seconds: float = 20, what: str = ""
    ) -> Any:
        """Poll until the awaited value is accepted; fails with the last one seen."""
        end = time.monotonic() + seconds
        while True:
            seen = await look()
            if accept(seen):
                return seen
            if time.monotonic() > end:
                raise AssertionError(
                    f"not within {seconds} s: {what}\nlast seen: {json.dumps(seen, indent=1, default=str)[:6000]}"
                )
            await asyncio.sleep(0.05)

    async def until_condition(
        self,
        namespace: str,
        name: str,
        type_: str,
        status: str,
        reason: str | None = None,
        *,
        seconds: float = 20,
    ) -> Json:
        """Wait for a condition of a job; returns the job."""

        def met(job: Json) -> bool:
            found = condition(job, type_)
            return found.get("status") == status and (reason is None or found.get("reason") == reason)

        job: Json = await self.until(
            lambda: self.job(namespace, name), met, seconds=seconds, what=f"{type_}={status} {reason or ''}"
        )
        return job

    async def until_pods(self, namespace: str, wanted: set[str], *, seconds: float = 20) -> dict[str, Json]:
        """Wait until exactly these pods exist."""
        found: dict[str, Json] = await self.until(
            lambda: self.pods(namespace),
            lambda pods: set(pods) == wanted,
            seconds=seconds,
            what=f"pods {wanted}",
        )
        return found


def _read(section: Mapping[str, str], key: str) -> bytes:
    inline = section.get(f"{key}-data")
    return base64.b64decode(inline) if inline else Path(section[key]).read_bytes()


def count_connections(port: int) -> int:
    """TCP connections to a port that this process holds open, by what the kernel says."""
    mine = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            mine.add(entry.readlink().name)
    rows = (line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:])
    # Its third column is the other side's address and port in hexadecimal, its tenth the socket's number.
    return sum(int(row[2].rpartition(":")[2], 16) == port and f"socket:[{row[9]}]" in mine for row in rows)


def write_token_kubeconfig(kubeconfig: Path, path: Path, token: str) -> Path:
    """A kubeconfig of the same server for whom a bearer token names, written to `path`."""
    config = yaml.safe_load(kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    return path


def timestamp() -> str:
    """Now, as the kubelet writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def container_status(phase: str, state: Json, *, ready: bool = False) -> Json:
    """A pod status whose tensorflow container is in that state."""
    return {
        "phase": phase,
        "podIP": POD_ADDRESS,
        "containerStatuses": [
            {
                "name": "tensorflow",
                "state": state,
                "ready": ready,
                "restartCount": 0,
                "image": "x",
                "imageID": "x",
            }
        ],
    }


def condition(job: Json, type_: str) -> Json:
    """A job's condition of that type, empty where it has none."""
    found = (c for c in job.get("status", {}).get("conditions", []) if c["type"] == type_)
    return next(found, {})
