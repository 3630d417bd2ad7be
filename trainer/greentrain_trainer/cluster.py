"""TF_CONFIG, TensorFlow's description of a cluster, parsed and checked before TensorFlow sees it.

TensorFlow accepts a wrong TF_CONFIG without an error and then waits without end for a peer that cannot come;
here every fault is one sentence and exit code 2.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from greentrain.api.runtime import Env
from greentrain_trainer.ending import misused

CHIEF = "chief"
WORKER = "worker"


@dataclass(frozen=True)
class Cluster:
    """The ranks of a synchronous job, and which of them this process is.

    A job of a single replica is `Cluster()`: no addresses, rank 0.
    """

    chiefs: tuple[str, ...] = ()
    """Addresses (`host:port`) of job `chief`: one or none."""
    workers: tuple[str, ...] = ()
    """Addresses of job `worker`, by index."""
    task_type: str = WORKER
    task_index: int = 0

    @property
    def size(self) -> int:
        """Number of ranks."""
        return max(1, len(self.chiefs) + len(self.workers))

    @property
    def rank(self) -> int:
        """Place among the ranks, in TensorFlow's own order: the chief first, then workers by index."""
        return self.task_index if self.task_type == CHIEF else len(self.chiefs) + self.task_index

    @property
    def is_chief(self) -> bool:
        """Whether this rank writes checkpoints: the chief, or worker 0 where there is none."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """Readable name of this rank, such as `worker-1`."""
        return f"{self.task_type}-{self.task_index}"

    @property
    def leader(self) -> str:
        """TensorFlow's name of the task that leads the coordination service."""
        return f"/job:{CHIEF if self.chiefs else WORKER}/replica:0/task:0"


def _addresses(text: str, jobs: object, job: str) -> tuple[str, ...]:
    addresses = jobs.get(job, []) if isinstance(jobs, dict) else None
    if not isinstance(addresses, list) or not all(
        isinstance(each, str) and ":" in each for each in addresses
    ):
        raise misused(
            f"{Env.TF_CONFIG}'s cluster.{job} must be a list of host:port, and it is {addresses!r}: {text[:200]}"
        )
    return tuple(addresses)


def parse_cluster(text: str | None) -> Cluster:
    """Parse the value of TF_CONFIG; None or empty means a single replica.

    Raises `Ending` with exit code 2 when it is not JSON, names a replica type this trainer does not
    run, or describes a task outside its own cluster.
    """
    if not text:
        return Cluster()
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise misused(f"{Env.TF_CONFIG} is not JSON ({error}): {text[:200]}") from None
    jobs = config.get("cluster") if isinstance(config, dict) else None
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(jobs, dict) or not isinstance(task, dict):
        raise misused(f"{Env.TF_CONFIG} must have the maps `cluster` and `task`, and it is: {text[:200]}")
    named = {*map(str, jobs), str(task.get("type", WORKER))}
    unknown = sorted(named - {CHIEF, WORKER})
    if unknown:
        raise misused(
            f"{Env.TF_CONFIG} names replica type {unknown[0]!r}; this trainer runs chief and worker only, "
            f"so give such a job a script of its own."
        )
    cluster = Cluster(
        chiefs=_addresses(text, jobs, CHIEF),
        workers=_addresses(text, jobs, WORKER),
        task_type=str(task.get("type", WORKER)),
        task_index=task["index"] if type(task.get("index")) is int else -1,
    )
    if len(cluster.chiefs) > 1:
        raise misused(f"{Env.TF_CONFIG} has {len(cluster.chiefs)} chiefs; a job has one at most.")
    peers = cluster.chiefs if cluster.task_type == CHIEF else cluster.workers
    if not 0 <= cluster.task_index < len(peers):
        raise misused(
            f"{Env.TF_CONFIG} says this task is {cluster.task_type} {task.get('index')!r}, "
            f"and its cluster has {len(peers)} of that type."
        )
    return cluster
