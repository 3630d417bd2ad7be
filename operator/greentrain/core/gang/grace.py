"""How long a pod of a gang may take to stop, where its template does not say it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from greentrain.core.seen.pods import DEFAULT_GRACE_SECONDS


def grace_of(spec_grace: int | None, templates: Iterable[Mapping[str, object]]) -> int:
    """The longest grace period of the pods that such templates make."""
    found = []
    for template in templates:
        pod = template.get("spec")
        value = pod.get("terminationGracePeriodSeconds") if isinstance(pod, Mapping) else None
        found.append(value if isinstance(value, int) else spec_grace or DEFAULT_GRACE_SECONDS)
    return max(found, default=DEFAULT_GRACE_SECONDS)
