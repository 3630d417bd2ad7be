"""What the sandbox asks of Kueue's chart, and the queues it makes."""

from __future__ import annotations

from sandbox.kueue import ENDLESS, KUEUE, QUEUE, RESOURCES, build_queues, build_values


def test_one_program_and_its_chart_are_taken_from_the_pinned_module() -> None:
    assert KUEUE.programs == ("kueue",)
    assert KUEUE.files == ("charts/kueue",)


def test_the_image_is_the_one_built_here_and_is_never_pulled() -> None:
    values = build_values()
    image = "controllerManager.manager.image"
    assert values[f"{image}.repository"] == "localhost/greentrain/kueue"
    assert (values[f"{image}.tag"], values[f"{image}.pullPolicy"]) == (KUEUE.version, "Never")


def test_gpus_are_scarce_in_the_cluster_queue_and_nothing_else_is() -> None:
    (cluster_queue,) = (o for o in build_queues(4) if o["kind"] == "ClusterQueue")
    (group,) = cluster_queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    quota = {resource["name"]: resource["nominalQuota"] for resource in flavor["resources"]}
    assert quota == {"nvidia.com/gpu": "4", **ENDLESS}
    assert group["coveredResources"] == list(RESOURCES)


def test_no_local_queue_takes_all_pods_of_its_namespace() -> None:
    """Kueue queues every pod of a namespace whose LocalQueue is named `default`."""
    (local,) = (o for o in build_queues(4) if o["kind"] == "LocalQueue")
    assert (local["metadata"]["name"], local["metadata"]["namespace"]) == (QUEUE, "default")
    assert QUEUE != "default"
