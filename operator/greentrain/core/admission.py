"""Whether a spec may run: a list of pure checks, each of which names field, value and remedy.

The API server checks what it can. Everything is checked again here, because old servers drop CEL rules, some clients skip
validation, and a structural schema cannot check a pod template.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from pydantic import BaseModel, ValidationError

from greentrain.api import names
from greentrain.api.crd import JOB_NAME_MAX
from greentrain.api.models import drop_nulls
from greentrain.api.resources import SHIPPED, GpuResources
from greentrain.api.runtime import BUILTIN_PROGRAMS, CONTAINER, PROGRESS_PORT, TENSORFLOW_PORT, Env
from greentrain.api.spec import (
    MAX_GRACE_SECONDS,
    NOT_BUILT,
    REPLACED,
    GreenTrainingJobSpec,
    ReplicaSpec,
    ReplicaType,
    RunPolicy,
)
from greentrain.core.gpu_requests import find_gpu_problems
from greentrain.core.limits import (
    MAX_WORD,
    SUGGESTIONS,
    find_barrier,
    find_excess,
    quote,
    shorten,
)
from greentrain.core.pod_security import find_privileges, find_volume_privileges
from greentrain.core.seen.snapshot import Job, TemplateProblem

CHECKPOINT_VOLUME = "greentrain-checkpoint"
"""Name of the pod volume that is made from `spec.checkpoint.volume`."""


MOST_PRIVILEGES = 10
"""How many fields beyond baseline are named at once: a condition has no room for more, and a list may have thousands."""

MOST_PROBLEMS = 20
"""How many problems a message names; a condition has at most 2,048 characters."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One field that is wrong."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class Admitted:
    """The parsed, valid spec."""

    spec: GreenTrainingJobSpec


@dataclass(frozen=True, slots=True)
class Refused:
    """Everything that is wrong with the spec, so that one edit can correct it all."""

    problems: tuple[Problem, ...]

    @property
    def message(self) -> str:
        """The problems as one text for a condition, and how many more there are."""
        named = "; ".join(str(p) for p in self.problems[:MOST_PROBLEMS])
        more = len(self.problems) - MOST_PROBLEMS
        return named if more <= 0 else f"{named}; and {more} more problems"


def decide_admission(
    job: Job,
    template_problems: tuple[TemplateProblem, ...] = (),
    *,
    privileged: bool = False,
    gpu_resources: GpuResources | None = SHIPPED,
) -> Admitted | Refused:
    """Parse and check a job's spec; one that is too deep or too large is not parsed.

    `privileged`: its pods need no check against Pod Security's baseline, because their namespace allows more, or because they
    were found to request no more. `gpu_resources`: which resources of containers are GPUs; None where what its pods request
    does not matter any more.
    """
    more = [Problem(t.path, t.message) for t in template_problems]
    found = find_barrier(job.spec) if job.barrier is None else job.barrier
    barrier = [Problem(b.path, b.message) for b in found]
    if barrier:
        return Refused((*barrier, *more))
    missing = [*check_not_built(job.spec)]
    problems = [*missing, *(Problem(e.path, e.message) for e in find_excess(job.spec))]
    try:
        spec = GreenTrainingJobSpec.model_validate(job.spec)
    except ValidationError as error:
        built = [p for p in explain(error) if not any(_within(p.path, q.path) for q in missing)]
        return Refused((*problems, *built, *more))
    for check in CHECKS:
        problems.extend(check(job, spec))
    if not privileged:
        problems.extend(check_pod_security(spec))
    if gpu_resources is not None:
        problems.extend(Problem(p.path, p.message) for p in find_gpu_problems(spec, gpu_resources))
    problems.extend(more)
    return Refused(tuple(problems)) if problems else Admitted(spec)


def read_run_policy(raw: object, before: RunPolicy) -> RunPolicy:
    """Read `spec.runPolicy` separately, whatever else is wrong with the spec; `before` is the one that was last admitted.

    A requested stop must work, also when another field is invalid. So each field is read alone: for an invalid one the
    value that was last admitted counts, an unknown one is ignored, null is unset.
    """
    if raw is None:
        return RunPolicy()
    if not isinstance(raw, Mapping):
        return before
    admitted = before.model_dump(mode="json", by_alias=True)
    fields: Mapping[str, Any] = drop_nulls(raw)
    read = {}
    for name, field in RunPolicy.model_fields.items():
        key = field.alias or name
        value = fields.get(key)
        if value is not None:
            read[key] = value if _is_valid(key, value) else admitted[key]
    return RunPolicy.model_validate(read)


def _is_valid(key: str, value: object) -> bool:
    try:
        RunPolicy.model_validate({key: value})
    except ValidationError:
        return False
    return True


def _within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith((f"{prefix}.", f"{prefix}["))


def check_not_built(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """Fields that this version of the API does not have yet, or does not have any more."""
    for path, purpose in NOT_BUILT.items():
        if _is_set(spec, path):
            yield Problem(path, f"{purpose}: not built yet in this version of greentrain; remove the field")
    for path, instead in REPLACED.items():
        if _is_set(spec, path):
            yield Problem(path, instead)


def _is_set(spec: Mapping[str, Any], path: str) -> bool:
    node: Any = {"spec": spec}
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node is not None


def explain(error: ValidationError) -> Iterator[Problem]:
    """Explain each pydantic error: its full path, the value and what would be valid; of many unknown fields only the first."""
    unknown = 0
    for item in error.errors(include_url=False):
        path = "spec" + "".join(f"[{p}]" if isinstance(p, int) else f".{shorten(p)}" for p in item["loc"])
        if item["type"] == "extra_forbidden":
            unknown += 1
            if unknown <= SUGGESTIONS:
                yield Problem(path, _unknown_field(str(item["loc"][-1]), item["loc"][:-1], path))
        elif item["type"] == "missing":
            yield Problem(path, "is required")
        else:
            words = item["msg"].removeprefix("Value error, ")
            expected = words[0].lower() + words[1:]
            yield Problem(path, f"{quote(item['input'])} is not valid: {expected}")
    if unknown > SUGGESTIONS:
        yield Problem("spec", f"and {unknown - SUGGESTIONS} more unknown fields; remove them")


def _unknown_field(key: str, location: tuple[int | str, ...], path: str) -> str:
    known = [*_known_fields(location), *_not_built_under(path)] if len(key) <= MAX_WORD else []
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return "unknown field" + (f"; did you mean {near[0]}?" if near else "; remove it")


def _not_built_under(path: str) -> list[str]:
    parent = path.rpartition(".")[0]
    return [p.rpartition(".")[2] for p in NOT_BUILT if p.rpartition(".")[0] == parent]


def _known_fields(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = GreenTrainingJobSpec
    for part in location:
        field = next((f for n, f in model.model_fields.items() if (f.alias or n) == part), None)
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((c for c in candidates if _is_model(c)), None)
        if inner is None:
            return []
        model = inner
    return [f.alias or n for n, f in model.model_fields.items()]


def _is_model(candidate: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def check_name(job: Job, spec: GreenTrainingJobSpec) -> Iterator[Problem]:
    """The job's name must give valid DNS names for the Service and for every pod."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job.name):
        yield Problem(
            "metadata.name",
            f"'{job.name}' must start with a letter and have only lower-case letters, digits and -, because it "
            "names the job's Service; create the job under another name",
        )
    longest = max(
        (names.hostname(job.name, t.value, s.replicas - 1) for t, s in spec.tf_replica_specs.roles()),
        key=len,
        default=job.name,
    )
    if len(longest) > names.DNS_LABEL_MAX:
        over = len(longest) - names.DNS_LABEL_MAX
        yield Problem(
            "metadata.name",
            f"'{job.name}' makes the host name '{longest}' of {len(longest)} characters, and DNS allows "
            f"{names.DNS_LABEL_MAX}; shorten it by {over} (at most {JOB_NAME_MAX} for up to ten workers)",
        )


def check_roles(job: Job, spec: GreenTrainingJobSpec) -> Iterator[Problem]:
    """At most one chief, and at least one rank that trains."""
    del job
    roles = spec.tf_replica_specs
    if not any(t.synchronous for t, _ in roles.roles()):
        yield Problem("spec.tfReplicaSpecs", "needs Worker, Chief or both; add Worker")
    if roles.chief and roles.master:
        yield Problem("spec.tfReplicaSpecs", "Chief and Master are two names of one role; keep one of them")
    for type_, role in roles.roles():
        if type_ is not ReplicaType.WORKER and role.replicas != 1:
            yield Problem(
                f"spec.tfReplicaSpecs.{type_.value}.replicas",
                f"{role.replicas} is not valid: a job has one {type_.value}; set 1",
            )


def check_templates(job: Job, spec: GreenTrainingJobSpec) -> Iterator[Problem]:
    """Each template needs the container that everything is injected into, and must not use names that we add."""
    del job
    for type_, role in spec.tf_replica_specs.roles():
        path = f"spec.tfReplicaSpecs.{type_.value}.template"
        yield from check_template(path, role, checkpointed=spec.checkpoint is not None)
        yield from _check_trainers_role(path, type_, spec, role)


def _check_trainers_role(
    path: str, type_: ReplicaType, spec: GreenTrainingJobSpec, role: ReplicaSpec
) -> Iterator[Problem]:
    """Refuse what the built-in trainer cannot do, before pods are created for it."""
    pod_spec = role.template.get("spec")
    containers = pod_spec.get("containers") if isinstance(pod_spec, Mapping) else None
    if not isinstance(containers, list) or not any(
        isinstance(c, Mapping) and c.get("name") == CONTAINER and _runs_the_trainer(c) for c in containers
    ):
        return
    if type_ is ReplicaType.EVALUATOR:
        yield Problem(
            path, "the built-in trainer evaluates within its training loop; remove Evaluator, or run your own"
        )
    if spec.enable_dynamic_worker:
        yield Problem(
            "spec.enableDynamicWorker", "the built-in trainer needs TF_CONFIG's full form; set it to false"
        )


def _runs_the_trainer(container: Mapping[str, Any]) -> bool:
    return "greentrain_trainer" in [*_items(container.get("command")), *_items(container.get("args"))]


def check_template(path: str, role: ReplicaSpec, *, checkpointed: bool) -> Iterator[Problem]:
    """Check one pod template as far as this operator relies on it; the API server checks the rest."""
    pod_spec = role.template.get("spec")
    containers = pod_spec.get("containers") if isinstance(pod_spec, Mapping) else None
    if (
        not isinstance(pod_spec, Mapping)
        or not isinstance(containers, list)
        or not all(isinstance(c, Mapping) for c in containers)
    ):
        yield Problem(f"{path}.spec.containers", f"needs a list with a container named {CONTAINER}")
        return
    found = [c.get("name") for c in containers]
    yield from _check_grace(path, pod_spec)
    if found.count(CONTAINER) != 1:
        names_ = shorten(str(found), 4 * MAX_WORD)
        yield Problem(
            f"{path}.spec.containers",
            f"{names_} holds no container named {CONTAINER}; name the training container {CONTAINER}"
            if CONTAINER not in found
            else f"{names_} names {CONTAINER} more than once; keep one",
        )
        return
    for key in ("hostname", "subdomain", "restartPolicy"):
        if key in pod_spec and not (key == "restartPolicy" and pod_spec[key] == "Never"):
            value = shorten(str(pod_spec[key]))
            yield Problem(f"{path}.spec.{key}", f"'{value}' is set by greentrain; remove it")
    index = found.index(CONTAINER)
    container = containers[index]
    at = f"{path}.spec.containers[{index}]"
    reserved = {e.value for e in Env}
    for i, variable in enumerate(_items(container.get("env"))):
        if isinstance(variable, Mapping) and str(variable.get("name")) in reserved:
            yield Problem(f"{at}.env[{i}].name", f"'{variable['name']}' is set by greentrain; remove it")
    yield from _check_ports(at, container)
    if checkpointed:
        for i, volume in enumerate(_items(pod_spec.get("volumes"))):
            if isinstance(volume, Mapping) and volume.get("name") == CHECKPOINT_VOLUME:
                yield Problem(
                    f"{path}.spec.volumes[{i}].name", f"'{CHECKPOINT_VOLUME}' is greentrain's own; rename it"
                )
    yield from check_program(at, container)


def _check_grace(path: str, pod_spec: Mapping[str, Any]) -> Iterator[Problem]:
    """The grace period: stops and their bounds are computed with it."""
    grace = pod_spec.get("terminationGracePeriodSeconds")
    if grace is not None and not (type(grace) is int and 0 <= grace <= MAX_GRACE_SECONDS):
        yield Problem(
            f"{path}.spec.terminationGracePeriodSeconds",
            f"{quote(grace)} is not valid: set whole seconds from 0 to {MAX_GRACE_SECONDS} (a day)",
        )


def _items(value: object) -> list[Any]:
    """The value if it is a list, else an empty one: the check of the template reports any other value."""
    return value if isinstance(value, list) else []


def _check_ports(at: str, container: Mapping[str, Any]) -> Iterator[Problem]:
    ours = {"tfjob-port": TENSORFLOW_PORT, "progress": PROGRESS_PORT}
    for i, port in enumerate(_items(container.get("ports"))):
        if (
            isinstance(port, Mapping)
            and str(port.get("name")) in ours
            and port.get("containerPort") != ours[str(port["name"])]
        ):
            wanted = ours[port["name"]]
            yield Problem(
                f"{at}.ports[{i}].containerPort",
                f"{port.get('containerPort')} is not valid: the port named {port['name']} is {wanted}; set {wanted}",
            )


def check_program(at: str, container: Mapping[str, Any]) -> Iterator[Problem]:
    """Refuse a program that the built-in trainer does not have, before pods are created for it."""
    if not _runs_the_trainer(container):
        return  # another image, or our image by its entry point: only the program itself can check its arguments
    words = [*_items(container.get("command")), *_items(container.get("args"))]
    rest = words[words.index("greentrain_trainer") + 1 :]
    program = rest[0] if rest else ""
    if str(program).startswith("-") or not program:
        yield Problem(f"{at}.args", f"the trainer's first argument is its program; add one of {_programs()}")
    elif program not in BUILTIN_PROGRAMS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(program)):
        yield Problem(
            f"{at}.args", f"'{shorten(str(program))}' is no program of the trainer; use one of {_programs()}"
        )


def _programs() -> str:
    return f"{', '.join(BUILTIN_PROGRAMS)} or your own module:function"


def check_checkpoint(job: Job, spec: GreenTrainingJobSpec) -> Iterator[Problem]:
    """The checkpoint volume must be one pod volume source, without a name of its own."""
    del job
    if spec.checkpoint is None:
        return
    volume = spec.checkpoint.volume
    if len(volume) != 1 or "name" in volume:
        yield Problem(
            "spec.checkpoint.volume",
            f"{shorten(', '.join(sorted(map(str, volume)))) or 'nothing'} is not one pod volume source; write one, such as "
            "persistentVolumeClaim: {claimName: training}",
        )
    if ".." in spec.checkpoint.path.split("/"):
        yield Problem("spec.checkpoint.path", f"'{spec.checkpoint.path}' leaves the volume; remove '..'")


def check_pod_security(spec: GreenTrainingJobSpec) -> Iterator[Problem]:
    """The first fields that request more than Pod Security's baseline: only a namespace's label allows them."""
    found = [
        find_privileges(role.template, f"spec.tfReplicaSpecs.{type_.value}.template")
        for type_, role in spec.tf_replica_specs.roles()
    ]
    if spec.checkpoint is not None:
        found.append(find_volume_privileges(spec.checkpoint.volume, "spec.checkpoint.volume"))
    for privilege in itertools.islice(itertools.chain(*found), MOST_PRIVILEGES):
        yield Problem(privilege.path, privilege.message)


def check_scope(job: Job, spec: GreenTrainingJobSpec) -> Iterator[Problem]:
    """The scope of a job cannot change: a sum of two kinds of energy would mean neither."""
    known = job.status.energy
    if known is not None and known.used and spec.energy.scope != known.scope:
        yield Problem(
            "spec.energy.scope",
            f"'{spec.energy.scope}' is not valid: the energy of {known.scope} has been counted already; set {known.scope} "
            "back, or create the job again",
        )
    emissions = job.status.emissions
    if emissions is not None and emissions.shares and spec.emissions.basis not in (None, emissions.basis):
        yield Problem(
            "spec.emissions.basis",
            f"'{spec.emissions.basis}' is not valid: emissions of basis {emissions.basis} have been counted already; set "
            f"{emissions.basis} back, or create the job again",
        )


def check_power(job: Job, spec: GreenTrainingJobSpec) -> Iterator[Problem]:
    """A policy that chooses the cap for a budget needs a budget."""
    del job
    if spec.power is None:
        return
    chooses = spec.power.lowers_cap
    if chooses and spec.energy.budget is None and spec.emissions.budget is None:
        yield Problem(
            "spec.power.budgetPolicy",
            "'LowerCap' is not valid without a budget: set spec.energy.budget or spec.emissions.budget, or None",
        )
    if not chooses and spec.power.max_slowdown_percent is not None:
        yield Problem(
            "spec.power.maxSlowdownPercent",
            f"'{spec.power.max_slowdown_percent}' is only for spec.power.budgetPolicy LowerCap: set that, or remove it",
        )


CHECKS: tuple[Callable[[Job, GreenTrainingJobSpec], Iterator[Problem]], ...] = (
    check_name,
    check_roles,
    check_templates,
    check_checkpoint,
    check_scope,
    check_power,
)
"""The order does not matter: each check has its own preconditions."""
