"""The few calls the operator makes, as plain JSON over the official async client.

It uses the client's connection, authentication and TLS. Its generated classes are bypassed on purpose: importing `CoreV1Api`
alone costs 100 MiB of memory, decoding a pod into the typed models costs more than the request, and both drop fields that a
newer server sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import aiohttp
from kubernetes.aio import client

from greentrain.api import names
from greentrain.kube.answers import LIST_PAGE, Pages, read_at_most, read_retry_after, read_until_end
from greentrain.kube.cache import Slim
from greentrain.kube.connection import read_configuration
from greentrain.kube.decoding import decode, whole_lines
from greentrain.kube.redaction import find_secrets, redact_beginning

Body = Mapping[str, Any]

REQUEST_SECONDS = 30.0
"""Longest a request may take, waiting for a free connection included: the API server answers within 60 s or never, and a pass
retries sooner."""

CONNECT_SECONDS = 5.0

CONNECTIONS = 32
"""Parallel connections to the API server; passes wait for a free one."""

WATCH_SECONDS = 300.0
"""After so long the server ends a watch, and it is opened again from where it was."""

WATCH_SILENCE_SECONDS = 150.0
"""A watch that delivers nothing for so long, not even a bookmark, is opened again from where it was, since its connection may
be dead. It need not be: an API server sends bookmarks about once a minute (`defaultBookmarkFrequency` of its watch cache), but
not always. A restarted one sends none for a kind of which nothing has changed since."""

LIST_RESTARTS = 3
"""How often a list is started again whose continue token has expired on the server (410, after 5 minutes or at once when etcd
was compacted)."""

NOT_JSON = "NotJSON"
"""Reason of an answer with a success code that cannot be read."""


WORDS_MAX = 4096
"""Characters of a refusal that are kept: for a pod with thousands of faults the API server writes half a megabyte."""


class ApiError(Exception):
    """The API server refused a request.

    `status` is the HTTP status, `reason` the server's (`Conflict`, `NotFound`, `Invalid`, …), `retry_after` the seconds that
    the server asks to wait before the next try, where it gives them.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later: throttled, overtaken by another writer, or the server is in trouble.

        A quota that two creations meet at the same moment answers 409 Conflict to one of them.
        """
        if self.status == 409:
            return self.reason != "AlreadyExists"
        return self.status in (408, 410, 429) or self.status >= 500

    @property
    def refuses_content(self) -> bool:
        """Whether the content was refused, and will be each time: not valid, or too large.

        etcd's refusal of an object beyond its limit (1.5 MiB by default) comes as a 500: "etcdserver: request is too large".
        """
        return self.status in (400, 413, 422) or (self.status >= 500 and "too large" in self.message)


class LongAnswerError(Exception):
    """An answer is longer than the limit."""


_JOBS = f"/apis/{names.GROUP}/{names.VERSION}"
NODE_POWERS = f"{_JOBS}/{names.NODE_POWER_PLURAL}"
NODE_PODS = "/api/v1/pods"
NODES = "/api/v1/nodes"
_LEASES = "/apis/coordination.k8s.io/v1{}/leases"
_PATHS = {"Pod": "pods", "Service": "services"}
_OURS = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY},{names.LABEL_JOB}"


class Client(AbstractAsyncContextManager["Client"]):
    """Connection to one API server; use as an async context manager."""

    def __init__(
        self,
        configuration: client.Configuration,
        *,
        page: int = LIST_PAGE,
        silence: float = WATCH_SILENCE_SECONDS,
    ) -> None:
        configuration.connection_pool_maxsize = CONNECTIONS
        # Else aiohttp reads ~/.netrc in a thread before every request, a third of a pod creation's CPU time (measured),
        # and goes through HTTPS_PROXY, which Kopf's watches do not.
        configuration.client_session_kwargs = {"trust_env": False}
        self._page = page
        self._watch = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        self._api = client.ApiClient(configuration)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._api.close()

    async def _request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        answer, _ = await self._exchange(method, path, body, query=query, content_type=content_type)
        return answer

    async def _exchange(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        most: int | None = None,
    ) -> tuple[dict[str, Any], int]:
        """The answer and its length in bytes; LongAnswerError for one of more than `most`."""
        # The body is kept from param_serialize, which would copy it in search of generated models; ours is plain JSON.
        verb, url, headers, _, __ = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            auth_settings=["BearerToken"],
        )
        response = await self._api.call_api(verb, url, headers, body, _request_timeout=_TIMEOUT)
        raw = await read_at_most(response.response, most)
        if raw is None:
            raise LongAnswerError
        try:
            answer = decode(raw) if raw else {}
        except ValueError:
            answer = None
        found = answer if isinstance(answer, dict) else {}
        if not 200 <= response.status < 300:
            raise ApiError(
                response.status,
                found.get("reason") or response.reason or "Unknown",
                redact_beginning(found.get("message") or "", find_secrets(body), WORDS_MAX),
                read_retry_after(response.getheader("Retry-After"), found),
            )
        if answer is None:
            # A proxy before the server answered, or the answer was cut off.
            raise ApiError(
                502, NOT_JSON, f"{method} {path} was answered with {len(raw)} bytes that are not JSON"
            )
        return found, len(raw)

    async def _list(
        self, path: str, query: Mapping[str, str], kind: str = ""
    ) -> tuple[list[dict[str, Any]], int]:
        """All objects, of jobs and pods the needed parts, and the resourceVersion they were listed at."""
        for _ in range(LIST_RESTARTS):
            try:
                return await self._pages(path, query, kind)
            except ApiError as error:
                if error.status != 410:
                    raise
        return await self._pages(path, query, kind)

    async def _pages(
        self, path: str, query: Mapping[str, str], kind: str
    ) -> tuple[list[dict[str, Any]], int]:
        items: list[dict[str, Any]] = []
        token = ""
        pages = Pages(self._page)
        slim = Slim(kind)
        while True:
            asked = {**query, "limit": str(pages.limit), **({"continue": token} if token else {})}
            try:
                page, size = await self._exchange("GET", path, query=asked, most=pages.most_bytes)
            except LongAnswerError:
                pages.shrink()
                continue
            pages.fit(size)
            meta = page.get("metadata") or {}
            if "resourceVersion" not in meta:
                raise ApiError(502, "NotAList", f"GET {path} was answered with something that is not a list")
            items += map(slim, page.get("items") or ())
            token = meta.get("continue") or ""
            page = {}  # not kept while the next one is read
            if not token:
                return items, int(meta["resourceVersion"])

    async def watch(
        self, path: str, query: Mapping[str, str], version: int
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Event types and objects of a list from a resourceVersion on, bookmarks included, until it ends.

        It ends when the server ends it, when its connection breaks, and after `silence` seconds without a byte. None of these
        is an error: nothing is lost, and the next watch continues from the last resourceVersion.

        Raises:
            ApiError: the server refused it, or ended it with an error: 410 requires a fresh list.
            TimeoutError, aiohttp.ClientError, OSError: it could not be opened.
        """
        verb, url, headers, _, __ = await self._api.param_serialize(
            "GET",
            path,
            query_params=[
                *query.items(),
                ("watch", "true"),
                ("allowWatchBookmarks", "true"),
                ("resourceVersion", str(version)),
                ("timeoutSeconds", str(int(WATCH_SECONDS))),
            ],
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        async with asyncio.timeout(REQUEST_SECONDS):  # the server sends the headers of a watch at once
            answer = await self._api.call_api(verb, url, headers, None, _request_timeout=self._watch)
        response = answer.response
        try:
            if response.status != 200:
                wait = read_retry_after(response.headers.get("Retry-After"), {})
                raise ApiError(response.status, response.reason or "Unknown", f"GET {path}?watch", wait)
            async for line in whole_lines(read_until_end(response)):
                if line:
                    event = decode(line)
                    if event["type"] == "ERROR":
                        said = event["object"]
                        raise ApiError(
                            int(said.get("code") or 500), said.get("reason") or "", said.get("message") or ""
                        )
                    yield event["type"], event["object"]
        finally:
            response.close()

    async def read_version(self) -> dict[str, Any]:
        """The server's version; every account may read it, by the role system:public-info-viewer."""
        return await self._request("GET", "/version")

    async def read_namespace(self, name: str) -> dict[str, Any]:
        """A namespace, with its labels."""
        return await self._request("GET", f"/api/v1/namespaces/{name}")

    async def list_any(self, path: str, query: Mapping[str, str]) -> tuple[list[dict[str, Any]], int]:
        """Everything a path lists, and the resourceVersion to watch it from."""
        return await self._list(path, query)

    async def read_node_power(self, node: str) -> dict[str, Any]:
        """A node's NodePower."""
        return await self._request("GET", f"{NODE_POWERS}/{node}")

    async def create_node_power(self, node: str) -> dict[str, Any]:
        """Create a node's NodePower, empty."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.NODE_POWER_KIND,
            "metadata": {"name": node, "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY}},
            "spec": {},
        }
        return await self._request(
            "POST", NODE_POWERS, body, query={"fieldManager": names.AGENT_FIELD_MANAGER}
        )

    async def report_node_power(self, node: str, status: Body) -> dict[str, Any]:
        """Store what a node's agent observed, whole; nothing else writes it."""
        return await self._request(
            "PATCH",
            f"{NODE_POWERS}/{node}/status",
            [{"op": "add", "path": "/status", "value": status}],
            query={"fieldManager": names.AGENT_FIELD_MANAGER},
            content_type="application/json-patch+json",
        )

    async def list_jobs(self, namespace: str | None) -> tuple[list[dict[str, Any]], int]:
        """All jobs of a namespace, or of all, and the resourceVersion they were listed at."""
        return await self._list(f"{_JOBS}{_within(namespace)}/{names.PLURAL}", {}, names.KIND)

    async def list_pods(self, namespace: str | None) -> tuple[list[dict[str, Any]], int]:
        """All pods of our jobs in a namespace, or in all."""
        return await self._list(f"/api/v1{_within(namespace)}/pods", {"labelSelector": _OURS}, "Pod")

    async def list_services(self, namespace: str | None) -> tuple[list[dict[str, Any]], int]:
        """All Services of our jobs in a namespace, or in all."""
        return await self._list(f"/api/v1{_within(namespace)}/services", {"labelSelector": _OURS})

    async def list_node_powers(self) -> tuple[list[dict[str, Any]], int]:
        """All NodePowers; they are cluster-scoped."""
        return await self._list(NODE_POWERS, {})

    async def ask_agent(self, node: str, resource_version: str, spec: Body) -> dict[str, Any]:
        """Store the requests to a node's agent, if its NodePower is still at that resourceVersion; else 409."""
        return await self._request(
            "PATCH",
            f"{NODE_POWERS}/{node}",
            {"metadata": {"resourceVersion": resource_version}, "spec": spec},
            query={"fieldManager": names.FIELD_MANAGER},
            content_type="application/merge-patch+json",
        )

    async def delete_node_power(self, node: str, uid: str, resource_version: str) -> None:
        """Delete a NodePower, if it was not written since."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid, "resourceVersion": resource_version},
        }
        await self._request("DELETE", f"{NODE_POWERS}/{node}", options)

    async def delete_daemon_set(self, namespace: str, name: str) -> None:
        """Request a DaemonSet's deletion; its pods are deleted with it."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        await self._request("DELETE", f"/apis/apps/v1{_within(namespace)}/daemonsets/{name}", options)

    async def list_selected_pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        """The pods of a namespace that carry these labels."""
        items, _ = await self._list(f"/api/v1{_within(namespace)}/pods", {"labelSelector": selector})
        return items

    async def list_pods_of(self, namespace: str, job: str) -> list[dict[str, Any]]:
        """The pods of one job as they are now."""
        selector = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY},{names.LABEL_JOB}={job}"
        items, _ = await self._list(f"/api/v1{_within(namespace)}/pods", {"labelSelector": selector}, "Pod")
        return items

    async def find_job(self, namespace: str, name: str) -> dict[str, Any] | None:
        """One job as it is now; None where it does not exist. A list of one: to read it by name would need one more right."""
        path = f"{_JOBS}{_within(namespace)}/{names.PLURAL}"
        items, _ = await self._list(path, {"fieldSelector": f"metadata.name={name}"}, names.KIND)
        return items[0] if items else None

    async def create(self, kind: str, body: Body) -> dict[str, Any]:
        """Create a Pod or Service; an unknown field is rejected."""
        path = f"/api/v1{_within(body['metadata']['namespace'])}/{_PATHS[kind]}"
        query = {"fieldManager": names.FIELD_MANAGER, "fieldValidation": "Strict"}
        return await self._request("POST", path, body, query=query)

    async def read(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        """Read a Pod or Service by name."""
        return await self._request("GET", f"/api/v1{_within(namespace)}/{_PATHS[kind]}/{name}")

    async def delete_pod(
        self, namespace: str, name: str, uid: str, *, grace_seconds: int | None = None
    ) -> dict[str, Any]:
        """Request a pod's deletion with its own grace period; a successor of the same name is safe.

        Of a pod that is being deleted the grace period is cut short to `grace_seconds`; without these nothing changes.

        404 and 409 mean that no pod of that UID exists any more.
        """
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
        }
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            return await self._request("DELETE", f"/api/v1{_within(namespace)}/pods/{name}", options)
        except ApiError as error:
            if error.status == 409:
                _refuse_if_same(await self.read("Pod", namespace, name), uid, error)
            raise

    async def evict_pod(
        self, namespace: str, name: str, uid: str, *, grace_seconds: int | None = None
    ) -> None:
        """Request a pod's eviction with its own grace period; a successor of the same name is safe.

        Of a pod that is being deleted the grace period is cut short to `grace_seconds`; without these nothing changes.
        404 and 409 mean that no pod of that UID exists any more; 429 that a PodDisruptionBudget does not allow it now.
        """
        options: dict[str, Any] = {"preconditions": {"uid": uid}}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"namespace": namespace, "name": name},
            "deleteOptions": options,
        }
        pods = f"/api/v1{_within(namespace)}/pods"
        try:
            await self._request("POST", f"{pods}/{name}/eviction", body)
        except ApiError as error:
            if error.status == 409:
                # By a list: to read a pod by its name would need one more right.
                found, _ = await self._list(pods, {"fieldSelector": f"metadata.name={name}"})
                _refuse_if_same(found[0] if found else None, uid, error)
            raise

    async def read_lease(self, namespace: str, name: str) -> dict[str, Any]:
        """A Lease."""
        return await self._request("GET", f"{lease_path(namespace)}/{name}")

    async def create_lease(
        self, namespace: str, name: str, spec: Body, annotations: Mapping[str, str]
    ) -> dict[str, Any]:
        """Create a Lease; 409 where it exists."""
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": name,
                "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY},
                "annotations": dict(annotations),
            },
            "spec": spec,
        }
        return await self._request(
            "POST", lease_path(namespace), body, query={"fieldManager": names.FIELD_MANAGER}
        )

    async def renew_lease(self, lease: Body, spec: Body, annotations: Mapping[str, str]) -> dict[str, Any]:
        """Store a Lease's spec and annotations, if it is unchanged since it was read; else 409."""
        meta = {**lease["metadata"], "annotations": dict(annotations)}
        path = f"{lease_path(meta['namespace'])}/{meta['name']}"
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._request("PUT", path, {**lease, "metadata": meta, "spec": spec}, query=query)

    async def delete_job(self, namespace: str, name: str, uid: str) -> dict[str, Any]:
        """Delete a job with all it owns; a successor of the same name is safe.

        404 and 409 mean that no job of that UID exists any more.
        """
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        try:
            return await self._request(
                "DELETE", f"{_JOBS}{_within(namespace)}/{names.PLURAL}/{name}", options
            )
        except ApiError as error:
            if error.status == 409:
                _refuse_if_same(await self.find_job(namespace, name), uid, error)
            raise

    async def replace_status(
        self, namespace: str, name: str, resource_version: str, status: Body
    ) -> dict[str, Any]:
        """Store a job's whole status, if the job is still at that resourceVersion; else 409 Conflict."""
        return await self._request(
            "PATCH",
            f"{_JOBS}{_within(namespace)}/{names.PLURAL}/{name}/status",
            [
                {"op": "replace", "path": "/metadata/resourceVersion", "value": resource_version},
                {"op": "add", "path": "/status", "value": status},
            ],
            query={"fieldManager": names.FIELD_MANAGER},
            content_type="application/json-patch+json",
        )

    async def patch_status(
        self, namespace: str, name: str, resource_version: str, changed: Body
    ) -> dict[str, Any]:
        """Store some fields of a job's status and leave the others, if the job is still at that resourceVersion."""
        return await self._request(
            "PATCH",
            f"{_JOBS}{_within(namespace)}/{names.PLURAL}/{name}/status",
            {"metadata": {"resourceVersion": resource_version}, "status": changed},
            query={"fieldManager": names.FIELD_MANAGER},
            content_type="application/merge-patch+json",
        )

    async def create_event(self, namespace: str, body: Body) -> None:
        """Record a core/v1 Event."""
        await self._request("POST", f"/api/v1{_within(namespace)}/events", body)

    async def read_schema_hash(self, crd: str) -> str | None:
        """The schema hash in an installed CRD's annotation; None where there is none."""
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd}"
        body = await self._request("GET", path)
        found = (body["metadata"].get("annotations") or {}).get(names.ANNOTATION_SCHEMA_HASH)
        return None if found is None else str(found)


def lease_path(namespace: str) -> str:
    """The path of a namespace's Leases."""
    return _LEASES.format(_within(namespace))


def node_query(node: str) -> dict[str, str]:
    """Selects the pods of a node."""
    return {"fieldSelector": f"spec.nodeName={node}"}


_TIMEOUT = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)


def _refuse_if_same(body: Body | None, uid: str, error: ApiError) -> None:
    """Distinguish the meanings of a 409: another object has taken the name, or two writers met at this one."""
    if body is not None and body["metadata"]["uid"] == uid:
        raise ApiError(503, error.reason, error.message, error.retry_after)


def _within(namespace: str | None) -> str:
    return "" if namespace is None else f"/namespaces/{namespace}"


async def connect(
    kubeconfig: str | None = None,
    context: str | None = None,
    *,
    page: int = LIST_PAGE,
    silence: float = WATCH_SILENCE_SECONDS,
) -> Client:
    """Connect as the pod's service account, or by a kubeconfig where one is given.

    Lists come in pages; a watch that brings nothing for `silence` seconds ends.
    """
    return Client(await read_configuration(kubeconfig, context), page=page, silence=silence)
