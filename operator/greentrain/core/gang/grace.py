"""The grace period of the pods of a gang, also where a template sets none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from greentrain.core.seen.pods import DEFAULT_GRACE_SECONDS


def grace_of(spec_grace: int | None, templates: Iterable[Mapping[str, object]]) -> int:
    """The longest grace period, in seconds, of pods made from these templates."""
    found = []
    for template in templates:
        pod = template.get("spec")
        value = pod.get("terminationGracePeriodSeconds") if isinstance(pod, Mapping) else None
        found.append(value if isinstance(value, int) else spec_grace or DEFAULT_GRACE_SECONDS)
    return max(found, default=DEFAULT_GRACE_SECONDS)
