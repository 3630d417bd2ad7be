"""What the watches have shown so far, by job: newest wins, and the operator reads its own writes.

Watch events and answers to our own requests race each other, so a body replaces another only if its
resourceVersion is higher, and a deleted UID stays deleted. Objects that vanished while no watch was open
(Kopf does not report them) are found by `resync` against a fresh list.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from greentrain.api import names
from greentrain.api.resources import SHIPPED, GpuResources
from greentrain.api.runtime import Env
from greentrain.core.limits import find_barrier, find_metadata_excess, keep_least
from greentrain.core.seen.pods import Pod, parse_pod
from greentrain.core.seen.reports import Binding
from greentrain.core.seen.snapshot import BARRIER, Job, parse_job
from greentrain.core.seen.times import parse_time
from greentrain.kube.redaction import pod_group

Body = Mapping[str, Any]
Found = TypeVar("Found")

REMEMBERED_DELETIONS = 20_000


class Key(NamedTuple):
    """A job by namespace and name."""

    namespace: str
    name: str


class Missed(NamedTuple):
    """A change that a fresh list shows and no watch has delivered yet."""

    key: Key
    """The job it concerns."""
    uid: str
    version: int
    """resourceVersion of the change, or its upper bound where the object was deleted."""


class _ReadOnce(Generic[Found]):
    """What was read from each object's body, kept until the body changes."""

    def __init__(self, read: Callable[[Body], Found]) -> None:
        self._read = read
        self._known: dict[str, tuple[Body, Found]] = {}

    def get(self, body: Body) -> Found:
        """What was read from the body."""
        uid = body["metadata"]["uid"]
        known = self._known.get(uid)
        if known is None or known[0] is not body:
            known = self._known[uid] = (body, self._read(body))
        return known[1]

    def forget(self, uid: str) -> None:
        """The object no longer exists."""
        self._known.pop(uid, None)


class Cache:
    """Jobs, and pods and Services by the job they belong to."""

    def __init__(self, gpu_resources: GpuResources = SHIPPED) -> None:
        """`gpu_resources`: which resources of the pods' containers are GPUs."""
        self.gpu_resources = gpu_resources
        self._objects: dict[str, dict[Key, dict[str, Body]]] = {"Job": {}, "Pod": {}, "Service": {}}
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._last_states: dict[Key, dict[str, Body]] = {}
        """The last state of deleted pods, by job and by their names: one for each rank of an attempt."""
        self._found: dict[Key, tuple[tuple[str, int], Any]] = {}
        self._parsed: dict[Key, tuple[Body, Job]] = {}
        """Each job as it was read from the body beside it."""
        self._on_node: dict[str, dict[str, Key]] = {}
        """UIDs of the pods bound to a node, and the job each belongs to."""
        self._gone: OrderedDict[str, tuple[Key, str | None, Binding]] = OrderedDict()
        """Deleted pods, by UID: their job, its UID, and their node."""
        self._gone_of: dict[Key, set[str]] = {}
        self._pods = _ReadOnce(partial(parse_pod, resources=gpu_resources))
        self._bindings = _ReadOnce(binding_of)

    def put(self, kind: str, body: Body) -> Key | None:
        """Take in an object; returns the key of the job it concerns, or None if it is not new."""
        key, uid = job_key(kind, body), body["metadata"]["uid"]
        if key is None or uid in self._deleted:
            return None
        known = self._objects[kind].setdefault(key, {})
        old = known.get(uid)
        if old is not None and version_of(old) >= version_of(body):
            return None
        if kind == "Job":
            known.clear()  # a job of the same name that was deleted and created again
        body = slim(kind, body) if kind != "Job" else slim_job(body, old)
        if kind == "Pod":
            group = pod_group(body)
            body = _share(body, next((b for b in reversed(known.values()) if pod_group(b) == group), None))
        known[uid] = body
        if kind == "Pod" and (node := node_of(body)):
            self._on_node.setdefault(node, {})[uid] = key
        return key

    def drop(self, kind: str, body: Body) -> Key | None:
        """Drop a deleted object; returns the key of the job it concerned."""
        key, uid = job_key(kind, body), body["metadata"]["uid"]
        self._deleted[uid] = None
        while len(self._deleted) > REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)
        if key is None:
            return None
        known = self._objects[kind].get(key, {})
        last_seen = known.pop(uid, None)
        if kind == "Pod" and (node := node_of(last_seen or body)):
            there = self._on_node.get(node, {})
            there.pop(uid, None)
            if not there:
                self._on_node.pop(node, None)
        if kind == "Pod":
            self._pods.forget(uid)
            self._bindings.forget(uid)
            # The next pass still needs its end and its termination message.
            self._keep_last_state(key, _share(slim_pod(body), last_seen) if "status" in body else last_seen)
            self._remember(key, uid, body if node_of(body) else last_seen or body)
        if not known:
            self._objects[kind].pop(key, None)
        if kind == "Job" and not known:  # else the stored one is of a newer job of that name
            self.forget_last_states(key)
            self._found.pop(key, None)
            self._parsed.pop(key, None)
            for gone in self._gone_of.pop(key, ()):
                self._gone.pop(gone, None)
        return key

    def _keep_last_state(self, key: Key, state: Body | None) -> None:
        """Keep the last state of a deleted pod, as long as its job exists."""
        if state is None or controller_uid(state) not in self._objects["Job"].get(key, {}):
            return
        states = self._last_states.setdefault(key, {})
        before = states.get(state["metadata"]["name"])
        if before is None or version_of(before) <= version_of(state):
            states[state["metadata"]["name"]] = state
            if before is not None:
                self._pods.forget(before["metadata"]["uid"])

    def _remember(self, key: Key, uid: str, body: Body) -> None:
        """Keep the node of a deleted pod: it may report of the pod later."""
        if not node_of(body):
            return
        self._gone[uid] = (key, controller_uid(body), binding_of(body))
        self._gone_of.setdefault(key, set()).add(uid)
        while len(self._gone) > REMEMBERED_DELETIONS:
            oldest, (of, *_) = self._gone.popitem(last=False)
            left = self._gone_of[of]
            left.discard(oldest)
            if not left:
                del self._gone_of[of]

    def resync(self, kind: str, bodies: Iterable[Body], version: int) -> list[Missed]:
        """Compare with a list made at that resourceVersion; returns what it shows that the cache did not have."""
        missed = []
        listed = set()
        for body in bodies:
            listed.add(body["metadata"]["uid"])
            key = self.put(kind, body)
            if key is not None:
                missed.append(Missed(key, body["metadata"]["uid"], version_of(body)))
        for known in list(self._objects[kind].values()):
            for uid, body in list(known.items()):
                if uid not in listed and version_of(body) <= version:
                    key = self.drop(kind, body)
                    if key is not None:
                        missed.append(Missed(key, uid, version))
        return missed

    def job(self, key: Key) -> Body | None:
        """The job of that name, if there is one; without its status once that was read (`parsed_job`)."""
        return next(iter(self._objects["Job"].get(key, {}).values()), None)

    def parsed_job(self, key: Key) -> Job | None:
        """The job of that name, read once for each version of it, however many pods and nodes need it."""
        body = self.job(key)
        if body is None:
            return None
        known = self._parsed.get(key)
        if known is not None and known[0] is body:
            return known[1]
        job = parse_job(body)
        if not job.unreadable:
            # Kept once: as it was read.
            body = {name: value for name, value in body.items() if name != "status"}
            self._objects["Job"][key][job.uid] = body
        self._parsed[key] = (body, job)
        return job

    def jobs(self) -> list[Key]:
        """The names of all jobs."""
        return list(self._objects["Job"])

    def owned(self, kind: str, key: Key, uid: str) -> list[Body]:
        """The pods or Services this very job controls."""
        return [b for b in self._objects[kind].get(key, {}).values() if controller_uid(b) == uid]

    def parsed_pods(self, key: Key, uid: str) -> tuple[Pod, ...]:
        """The pods this very job controls, each read once for each version of it."""
        return self._read_pods(self.owned("Pod", key, uid))

    def parsed_last_states(self, key: Key, uid: str) -> tuple[Pod, ...]:
        """The last states of deleted pods of this job."""
        return self._read_pods(self.last_states(key, uid))

    def _read_pods(self, bodies: Iterable[Body]) -> tuple[Pod, ...]:
        return tuple(pod for pod in map(self._pods.get, bodies) if pod is not None)

    def bindings(self, key: Key, uid: str) -> dict[str, Binding]:
        """The present or last node of this very job's pods, by their UIDs."""
        gone = ((pod, self._gone[pod]) for pod in self._gone_of.get(key, ()))
        found = {pod: binding for pod, (_, owner, binding) in gone if owner == uid}
        return found | {b["metadata"]["uid"]: self._bindings.get(b) for b in self.owned("Pod", key, uid)}

    def pods_of(self, key: Key) -> list[Body]:
        """The pods that carry the name of this job."""
        return list(self._objects["Pod"].get(key, {}).values())

    def on_node(self, node: str) -> list[tuple[Key, Body]]:
        """The pods bound to a node, and the job each belongs to."""
        return [(key, self._objects["Pod"][key][uid]) for uid, key in self._on_node.get(node, {}).items()]

    def last_states(self, key: Key, uid: str) -> list[Body]:
        """The last states of deleted pods of this job."""
        return [b for b in self._last_states.get(key, {}).values() if controller_uid(b) == uid]

    def once_per_generation(
        self, key: Key, uid: str, generation: int, spec: Body, find: Callable[[Body], Found]
    ) -> Found:
        """The result of `find` for a spec, computed once for each generation of a job: traversing a template costs 5 ms."""
        mark = (uid, generation)
        known = self._found.get(key)
        if known is None or known[0] != mark:
            known = self._found[key] = (mark, find(spec))
        found: Found = known[1]
        return found

    def forget_last_states(self, key: Key) -> None:
        """Drop the last states of pods whose attempt has been recorded."""
        for body in self._last_states.pop(key, {}).values():
            self._pods.forget(body["metadata"]["uid"])


def slim(kind: str, body: Body) -> dict[str, Any]:
    """The parts of an object that the operator needs: users may put much more into it."""
    if kind == "Pod":
        return slim_pod(body)
    return slim_job(body) if kind in ("Job", names.KIND) else dict(body)


def slim_job(body: Body, before: Body | None = None) -> dict[str, Any]:
    """A job without managed fields; of one that is too deep or too large only the reason, and what users still request of it.

    A megabyte of empty lists takes thirty in memory, and a tenant may have any number of such jobs. `before` is its last
    version: a spec that has not changed is kept once, and not checked again.
    """
    if BARRIER in body:
        return dict(body)
    meta, spec = body["metadata"], body.get("spec")
    spec = spec if isinstance(spec, Mapping) else {}
    same = before is not None and not before[BARRIER] and before.get("spec") == spec
    barrier = (*(() if same else find_barrier(spec)), *find_metadata_excess(meta))
    if not barrier:
        kept = {k: v for k, v in meta.items() if k != "managedFields"}
        shared = {"spec": before["spec"]} if before is not None and same else {}
        return {**body, **shared, "metadata": kept, BARRIER: []}
    kept = {k: v for k, v in meta.items() if k in _KEPT_OF_METADATA}
    problems = [[problem.path, problem.message] for problem in barrier]
    return {**body, "metadata": kept, "spec": keep_least(spec), BARRIER: problems}


_KEPT_OF_METADATA = frozenset(
    {
        *("namespace", "name", "uid", "generation", "resourceVersion", "creationTimestamp"),
        *("deletionTimestamp", "deletionGracePeriodSeconds"),
    }
)


def slim_pod(body: Body) -> dict[str, Any]:
    """What decisions and redaction need of a pod: in a job of a thousand ranks each contains the addresses of all, 50 KiB."""
    meta, spec = body["metadata"], body.get("spec") or {}
    slim = {k: spec[k] for k in ("nodeName", "terminationGracePeriodSeconds") if k in spec}
    for kind in _CONTAINERS:
        if spec.get(kind):
            slim[kind] = [_slim_container(c) for c in spec[kind]]
    kept = {k: v for k, v in meta.items() if k != "managedFields"}
    for kind in ("labels", "annotations"):
        if kind in meta:
            kept[kind] = {k: v for k, v in (meta[kind] or {}).items() if k in _KEPT_OF_LABELS}
    return {**body, "metadata": kept, "spec": slim}


class Slim:
    """Objects of one list, one after the other, with only the needed parts."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._first: dict[tuple[str | None, ...], Body] = {}
        """The first of each group of equal pods."""

    def __call__(self, body: Body) -> dict[str, Any]:
        """The needed parts of an object."""
        found = slim(self._kind, body)
        if self._kind != "Pod":
            return found
        meta = body["metadata"]
        job = (meta.get("labels") or {}).get(names.LABEL_JOB)
        alike = (meta.get("namespace"), job, controller_uid(body), *pod_group(body))
        return _share(found, self._first.setdefault(alike, found))


def _share(pod: dict[str, Any], like: Body | None) -> dict[str, Any]:
    """The pod with the containers of an equal one: a thousand pods then have one copy of their template's variables."""
    spec, shared = pod["spec"], (like or {}).get("spec") or {}
    same = {kind: shared[kind] for kind in _CONTAINERS if kind in shared and shared[kind] == spec.get(kind)}
    return {**pod, "spec": {**spec, **same}}


_CONTAINERS = ("containers", "initContainers")
_KEPT_OF_LABELS = frozenset(
    {
        *(names.LABEL_MANAGED_BY, names.LABEL_JOB, names.LABEL_REPLICA_TYPE, names.LABEL_REPLICA_INDEX),
        *(names.LABEL_ATTEMPT, names.ANNOTATION_SPEC_HASH, names.ANNOTATION_BUDGETED),
    }
)
_KEPT = ("name", "resources", "restartPolicy", "command", "args")
_OURS = frozenset(e.value for e in Env)


def _slim_container(container: Body) -> Body:
    slim = {key: container[key] for key in _KEPT if key in container}
    return {**slim, "env": [v for v in container.get("env") or () if v.get("name") not in _OURS]}


def job_key(kind: str, body: Body) -> Key | None:
    """The job an object belongs to: itself, or the one its label names."""
    meta = body["metadata"]
    name = meta["name"] if kind == "Job" else (meta.get("labels") or {}).get(names.LABEL_JOB)
    return Key(meta["namespace"], name) if name else None


def node_of(body: Body) -> str:
    """The node a pod is bound to; empty for an unbound pod, and for other objects."""
    return str((body.get("spec") or {}).get("nodeName") or "")


def binding_of(body: Body) -> Binding:
    """The node a pod is bound to and when the pod was created."""
    meta = body["metadata"]
    return Binding(node_of(body), parse_time(meta.get("creationTimestamp")), meta["name"])


def controller_uid(body: Body) -> str | None:
    """UID of the controller that owns an object; None where none does."""
    references = body["metadata"].get("ownerReferences") or ()
    return next((r["uid"] for r in references if r.get("controller")), None)


def controller_name(body: Body) -> tuple[str, str] | None:
    """Kind and name of the controller that owns an object; None where none does."""
    references = body["metadata"].get("ownerReferences") or ()
    return next(((r["kind"], r["name"]) for r in references if r.get("controller")), None)


def version_of(body: Body) -> int:
    """An object's resourceVersion as a number; 0 where it has none."""
    # Opaque by contract before 1.35, a growing etcd revision in every server there is.
    return int(body["metadata"].get("resourceVersion") or 0)
