"""From the cluster to TensorFlow's distribution strategy, with a heartbeat of our choosing.

What else concerns all ranks at once stands here too: a sum over ranks, which is broadcast and barrier in
one, and how a lost peer is distinguished from a fault of the program.
"""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

from greentrain.api.runtime import Env
from greentrain_trainer.cluster import CHIEF, WORKER, Cluster
from greentrain_trainer.ending import failed

LOST_PEER_ERRORS: tuple[type[Exception], ...] = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
"""What a collective raises when another rank's connection breaks or its heartbeat stops. Others (out of
memory, a wrong shape) are this rank's own."""


def is_lost_peer(error: BaseException) -> bool:
    """Whether TensorFlow reports another rank's end, and not a fault of its own.

    While the cluster forms, the coordination service reports a lost rank as an `InternalError` ("Barrier
    failed"), known by the payload that all its reports carry.
    """
    return isinstance(error, LOST_PEER_ERRORS) or (
        isinstance(error, tf.errors.OpError) and "CoordinationServiceError=" in str(error)
    )


def build_strategy(cluster: Cluster, peer_timeout_seconds: float) -> Any:
    """The `tf.distribute.Strategy` for this rank; blocks until every rank has joined.

    One replica: the default strategy, or `MirroredStrategy` over several GPUs. More: collectives between
    workers. The wait cannot be interrupted from Python; `supervise` bounds it.
    """
    if cluster.size == 1:
        # A TF_CONFIG of one task would start a server without a client.
        os.environ.pop(Env.TF_CONFIG, None)
        several_gpus = len(tf.config.list_physical_devices("GPU")) > 1
        return tf.distribute.MirroredStrategy() if several_gpus else tf.distribute.get_strategy()
    try:
        _set_heartbeat(cluster, peer_timeout_seconds)
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise failed(
            "The program runs TensorFlow operations while its module is imported, and then no cluster can be "
            "formed; move them into its function."
        ) from error
    except tf.errors.UnknownError as error:
        if "Could not start gRPC server" not in str(error):
            raise
        address = [*cluster.chiefs, *cluster.workers][cluster.rank]
        raise failed(
            f"TensorFlow's server cannot listen at this rank's own port ({address}); see that no other program "
            f"in the pod, or on the node where the pod uses its network, uses the port."
        ) from None


def _set_heartbeat(cluster: Cluster, peer_timeout_seconds: float) -> None:
    # MultiWorkerMirroredStrategy configures the coordination service with its defaults only if no caller has
    # (tensorflow/python/distribute/collective_all_reduce_strategy.py, 2.21); there is no public way to set
    # the heartbeat. Frozen peers were then noticed after 2.6 to 4.8 s with 3 s, 7 to 10 s with 10 s.
    from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
    from tensorflow.python.eager import context

    counts = {CHIEF: len(cluster.chiefs), WORKER: len(cluster.workers)}
    context.context().configure_coordination_service(
        "standalone",
        service_leader=cluster.leader,
        heartbeat_timeout_in_ms=max(1, round(peer_timeout_seconds * 1000)),
        coordinated_jobs=[
            CoordinatedJob(name=job, num_tasks=count) for job, count in counts.items() if count
        ],
    )


def local_replicas(strategy: Any) -> int:
    """Replicas in this process: its GPUs, or one."""
    # The default strategy, which has one, does not know its devices.
    return 1 if strategy.num_replicas_in_sync == 1 else len(strategy.extended.worker_devices)


class RankSum:
    """Adds up a whole number over all ranks; returns when every rank has given its own."""

    def __init__(self, strategy: Any) -> None:
        replicas = local_replicas(strategy)

        @tf.function  # type: ignore[untyped-decorator]  # TensorFlow publishes no types
        def total(value: Any) -> Any:
            summed = strategy.reduce(
                tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(value,)), axis=None
            )
            return summed // replicas

        self._total = total

    def __call__(self, value: int) -> int:
        """The sum of `value` over ranks. Raises what `is_lost_peer` knows when a rank is lost."""
        return int(self._total(tf.constant(value, tf.int64)))
