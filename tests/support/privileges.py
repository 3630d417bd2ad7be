"""Fields of a pod template that ask for more than Pod Security's baseline, each with a value that baseline forbids.

Written by hand from https://kubernetes.io/docs/concepts/security/pod-security-standards/ (1.37), not made from the
product's own table.
"""

from __future__ import annotations

import re
from typing import Any

Json = dict[str, Any]

HOOKS = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop")
APPARMOR = "container.apparmor.security.beta.kubernetes.io/tensorflow"

OF_CONTAINERS: dict[str, Any] = {
    "securityContext.windowsOptions.hostProcess": True,
    "securityContext.privileged": True,
    "securityContext.capabilities.add[0]": "SYS_ADMIN",
    "securityContext.capabilities.add[1]": "NET_RAW",
    "securityContext.capabilities.add[2]": "ALL",
    "ports[0].hostPort": 80,
    **{f"{hook}.{action}.host": "169.254.169.254" for hook in HOOKS for action in ("httpGet", "tcpSocket")},
    "securityContext.appArmorProfile.type": "Unconfined",
    "securityContext.seLinuxOptions.type": "spc_t",
    "securityContext.seLinuxOptions.user": "system_u",
    "securityContext.seLinuxOptions.role": "system_r",
    "securityContext.procMount": "Unmasked",
    "securityContext.seccompProfile.type": "Unconfined",
}
"""By path in a container."""

OF_PODS: dict[str, Any] = {
    "spec.hostNetwork": True,
    "spec.hostPID": True,
    "spec.hostIPC": True,
    "spec.volumes[0].hostPath": {"path": "/"},
    "spec.volumes[1].hostPath": {},
    "spec.securityContext.windowsOptions.hostProcess": True,
    "spec.securityContext.appArmorProfile.type": "Unconfined",
    "spec.securityContext.seLinuxOptions.type": "spc_t",
    "spec.securityContext.seLinuxOptions.user": "system_u",
    "spec.securityContext.seLinuxOptions.role": "system_r",
    "spec.securityContext.seccompProfile.type": "Unconfined",
    "spec.securityContext.sysctls[0].name": "kernel.msgmax",
    f"metadata.annotations[{APPARMOR}]": "unconfined",
    # Not of Pod Security: there RBAC is asked, which sees the operator here.
    "spec.serviceAccountName": "builder",
    "spec.serviceAccount": "builder",
    "spec.nodeName": "node-1",
    "spec.priorityClassName": "system-node-critical",
}
"""By path in a template."""

FORBIDDEN: dict[str, Any] = OF_PODS | {
    f"spec.{kind}[0].{path}": value
    for kind in ("containers", "initContainers", "ephemeralContainers")
    for path, value in OF_CONTAINERS.items()
}

ALLOWED: dict[str, Any] = {
    "spec.hostNetwork": False,
    "spec.containers[0].securityContext.privileged": False,
    "spec.containers[0].securityContext.capabilities.add[0]": "CHOWN",
    "spec.containers[0].ports[0].hostPort": 0,
    "spec.containers[0].livenessProbe.httpGet.host": "",
    "spec.containers[0].securityContext.seccompProfile.type": "Localhost",
    "spec.containers[0].securityContext.appArmorProfile.type": "RuntimeDefault",
    "spec.containers[0].securityContext.seLinuxOptions.type": "container_t",
    "spec.containers[0].securityContext.seLinuxOptions.level": "s0:c1,c2",
    "spec.securityContext.sysctls[0].name": "net.ipv4.tcp_rmem",
    f"metadata.annotations[{APPARMOR}]": "runtime/default",
    "metadata.annotations[team]": "unconfined",
    "spec.volumes[0].emptyDir": {},
    "spec.serviceAccountName": "default",
    "spec.priorityClassName": "research-system-a",
}
"""What baseline lets be."""

_PART = re.compile(r"([^.\[\]]+)|\[(\d+)\]|\[([^\]]+)\]")


def put(template: Json, path: str, value: Any) -> Json:
    """Set a value at a path in a template, and make what is not there on the way; returns the template."""
    keys: list[Any] = [int(i) if i else word or key for word, i, key in _PART.findall(path)]
    node: Any = template
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        inner: Any = value if following is None else [] if isinstance(following, int) else {}
        if isinstance(key, int):
            node += [{} for _ in range(key + 1 - len(node))]
            if following is None or not node[key]:
                node[key] = inner
        elif following is None or key not in node:
            node[key] = inner
        node = node[key]
    return template
