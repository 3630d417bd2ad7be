"""What a pod template may not request: more than Pod Security's *baseline* level, and the rights of other accounts.

Otherwise a user who may create jobs in a namespace could get any pod there through the operator's own rights. A pod that
mounts the node's disk or is privileged is root on the node. `BASELINE` is the level's whole list as Kubernetes 1.37.2
checks it (k8s.io/pod-security-admission, `policy/check_*.go`), described at
https://kubernetes.io/docs/concepts/security/pod-security-standards/. With a label on a namespace an administrator allows
more there; docs/start/install.md explains whom that makes an administrator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from greentrain.api.names import LABEL_POD_SECURITY, POD_SECURITY_PRIVILEGED

CONTAINER_KINDS = ("containers", "initContainers", "ephemeralContainers")
_ANY_CONTAINER = "{containers}"
_HANDLERS = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop")


@dataclass(frozen=True)
class Rule:
    """One field of a template, and its allowed values; unset is always allowed."""

    control: str
    """Its name on Pod Security's page, or why the field is restricted."""
    path: str
    """The field's path in a template; `[*]` is each item of a list, `{containers}` each container of every kind."""
    allowed: tuple[object, ...] = ()
    """Allowed values."""
    prefixes: tuple[str, ...] = ()
    """Allowed beginnings of texts."""
    unless: Callable[[Mapping[str, Any]], bool] = lambda _: False
    """Whether the rule does not apply to a pod spec."""

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of the path."""
        return tuple(self.path.split("."))

    @property
    def remedy(self) -> str:
        """What to write instead."""
        named = [str(a) for a in self.allowed if isinstance(a, str) and a] + [f"{p}…" for p in self.prefixes]
        if not named:
            return "remove it"
        one_of = "" if len(named) == 1 else "one of "
        return f"write {one_of}{', '.join(named)}, or remove it"

    def allows(self, value: object) -> bool:
        """Whether this value is allowed."""
        if value is None or any(value == a and type(value) is type(a) for a in self.allowed):
            return True
        return isinstance(value, str) and value.startswith(self.prefixes) if self.prefixes else False


CAPABILITIES = (
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP"),
    *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
)  # fmt: skip
SYSCTLS = (
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies"),
    *("net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
    *("net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"),
    *("net.ipv4.tcp_slow_start_after_idle", "net.ipv4.tcp_notsent_lowat"),
)  # fmt: skip
SELINUX_TYPES = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
PROFILES = ("RuntimeDefault", "Localhost")
"""Types of a seccomp or an AppArmor profile."""


def _has_own_users(pod_spec: Mapping[str, Any]) -> bool:
    return pod_spec.get("hostUsers") is False


def _contexts(control: str, field: str, allowed: tuple[object, ...]) -> tuple[Rule, ...]:
    """A field of the security context of the pod and of each container."""
    return tuple(
        Rule(control, f"spec.{level}securityContext.{field}", allowed) for level in ("", f"{_ANY_CONTAINER}.")
    )


BASELINE = (
    *_contexts("HostProcess", "windowsOptions.hostProcess", (False,)),
    *(Rule("Host Namespaces", f"spec.{field}", (False,)) for field in ("hostNetwork", "hostPID", "hostIPC")),
    Rule("Privileged Containers", f"spec.{_ANY_CONTAINER}.securityContext.privileged", (False,)),
    Rule("Capabilities", f"spec.{_ANY_CONTAINER}.securityContext.capabilities.add[*]", CAPABILITIES),
    Rule("HostPath Volumes", "spec.volumes[*].hostPath"),
    Rule("Host Ports", f"spec.{_ANY_CONTAINER}.ports[*].hostPort", (0,)),
    *(
        Rule("Host Probes / Lifecycle Hooks", f"spec.{_ANY_CONTAINER}.{handler}.{action}.host", ("",))
        for handler in _HANDLERS
        for action in ("httpGet", "tcpSocket")
    ),
    *_contexts("AppArmor", "appArmorProfile.type", PROFILES),
    Rule(
        "AppArmor",
        "metadata.annotations[container.apparmor.security.beta.kubernetes.io/*]",
        ("", "runtime/default"),
        ("localhost/",),
    ),
    *_contexts("SELinux", "seLinuxOptions.type", SELINUX_TYPES),
    *_contexts("SELinux", "seLinuxOptions.user", ("",)),
    *_contexts("SELinux", "seLinuxOptions.role", ("",)),
    # A pod with a user namespace of its own may set any value, from Kubernetes 1.35 on.
    Rule(
        "/proc Mount Type",
        f"spec.{_ANY_CONTAINER}.securityContext.procMount",
        ("Default",),
        unless=_has_own_users,
    ),
    *_contexts("Seccomp", "seccompProfile.type", PROFILES),
    Rule("Sysctls", "spec.securityContext.sysctls[*].name", SYSCTLS),
)
"""Pod Security's baseline, of Kubernetes 1.37.2."""

OWN = (
    # `serviceAccount` is the older name of the same field.
    Rule("another account's rights", "spec.serviceAccountName", ("", "default")),
    Rule("another account's rights", "spec.serviceAccount", ("", "default")),
    Rule("a node that the scheduler did not choose", "spec.nodeName", ("",)),
)
"""What Pod Security leaves to RBAC. Here RBAC checks the operator and not the user."""

SYSTEM_PRIORITY = "system-"
"""Prefix of Kubernetes' own priority classes; for their pods every other pod may be preempted."""


@dataclass(frozen=True, slots=True)
class Privilege:
    """A field that requests more than baseline."""

    path: str
    message: str


def find_privileges(template: Mapping[str, Any], at: str) -> Iterator[Privilege]:
    """The fields of a pod template beyond baseline, by full path; `at` is the template's own path."""
    pod_spec = template.get("spec")
    if not isinstance(pod_spec, Mapping):
        return
    for source, rules in (("Pod Security's baseline, ", BASELINE), ("", OWN)):
        for rule in rules:
            for path, value in _look_up(template, rule.parts, at):
                if not rule.allows(value) and not rule.unless(pod_spec):
                    yield _find_privilege(path, value, f"{source}{rule.control}", rule.remedy)
    priority = pod_spec.get("priorityClassName")
    if isinstance(priority, str) and priority.startswith(SYSTEM_PRIORITY):
        yield _find_privilege(
            f"{at}.spec.priorityClassName", priority, "a system priority", "write another class, or remove it"
        )


def find_volume_privileges(volume: Mapping[str, Any], at: str) -> Iterator[Privilege]:
    """The fields of a volume that is not in a template beyond baseline, by full path; `at` is the volume's own path."""
    for found in find_privileges({"spec": {"volumes": [volume]}}, ""):
        yield Privilege(found.path.replace(".spec.volumes[0]", at, 1), found.message)


def asks_for_privileges(spec: Mapping[str, Any]) -> bool:
    """Whether a job's unparsed spec requests more than baseline: only then its namespace's label matters."""
    roles, checkpoint = spec.get("tfReplicaSpecs"), spec.get("checkpoint")
    for role in roles.values() if isinstance(roles, Mapping) else ():
        template = role.get("template") if isinstance(role, Mapping) else None
        if isinstance(template, Mapping) and any(find_privileges(template, "")):
            return True
    volume = checkpoint.get("volume") if isinstance(checkpoint, Mapping) else None
    return isinstance(volume, Mapping) and any(find_volume_privileges(volume, ""))


def _find_privilege(path: str, value: object, why: str, remedy: str) -> Privilege:
    return Privilege(
        path,
        f"{_shown(value)} is more than jobs may ask for in this namespace ({why}); {remedy}, or have an administrator "
        f"label the namespace {LABEL_POD_SECURITY}={POD_SECURITY_PRIVILEGED}",
    )


def _look_up(node: Any, parts: Sequence[str], path: str) -> Iterator[tuple[str, Any]]:
    """Every value at a rule's path, with its own path; none where the shape is not that of Kubernetes' type."""
    if not parts:
        yield path, node
        return
    part, *rest = parts
    if not isinstance(node, Mapping):
        return
    if part == _ANY_CONTAINER:
        for kind in CONTAINER_KINDS:
            yield from _look_up(node, [f"{kind}[*]", *rest], path)
    elif part.startswith("annotations["):
        # The key of an annotation may contain dots: it is the rest of the path.
        prefix = ".".join(parts).removeprefix("annotations[").removesuffix("*]")
        found = node.get("annotations")
        for key, value in found.items() if isinstance(found, Mapping) else ():
            if str(key).startswith(prefix):
                yield f"{path}.annotations[{key}]", value
    elif part.endswith("[*]"):
        name = part.removesuffix("[*]")
        items = node.get(name)
        for i, item in enumerate(items if isinstance(items, list) else ()):
            yield from _look_up(item, rest, f"{path}.{name}[{i}]")
    else:
        yield from _look_up(node.get(part), rest, f"{path}.{part}")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
