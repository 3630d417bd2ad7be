"""One rank's attempt from first to last: join, restore, train, save, and agree on the end.

Runs in the child process of `supervise`. The order is the point: the marker before anything is read or
written, the cluster before the program builds anything, our signal handler after the strategy (whose
creation installs TensorFlow's own, which swallows SIGTERM), and a common barrier before anyone leaves.
TensorFlow is imported late, so that whatever can be refused without it is refused at once.
"""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from greentrain.api.runtime import Checkpoint
from greentrain_trainer.batches import build_shard
from greentrain_trainer.ending import Ending, StopRequest, failed, finished, misused, peer_lost, stopped
from greentrain_trainer.environment import Environment
from greentrain_trainer.marker import check_marker, write_marker
from greentrain_trainer.options import Options
from greentrain_trainer.program import Program, Settings, load_program
from greentrain_trainer.progress import Scoreboard, serve_progress
from greentrain_trainer.supervise import Pipe

if TYPE_CHECKING:
    from greentrain_trainer.course import Course

log = logging.getLogger(__name__)

LINGER_SECONDS = 1.0
"""How long a rank stays after the last barrier, the chief twice as long: one that has not yet received the
barrier's result when another goes counts that one as lost, and the chief leads the coordination service."""


def check_batch(options: Options, replicas: int) -> None:
    """Refuse, with exit code 2, a global batch that so many replicas (all workers' GPUs) cannot share."""
    size = options.global_batch_size
    if size < replicas:
        raise misused(
            f"--global-batch-size {size} is less than the {replicas} replicas that share it; make it larger."
        )
    if options.loop == "fit" and size % replicas:
        raise misused(
            f"--global-batch-size {size} cannot be shared evenly by {replicas} replicas, as --loop fit needs; "
            f"make it a multiple of {replicas} or use --loop custom."
        )


def train_rank(options: Options, environment: Environment, pipe: Pipe) -> Ending:
    """Train as this rank; returns or raises how it ended."""
    cluster = environment.cluster
    scoreboard = Scoreboard(options.steps, pipe.progress)
    port = serve_progress(scoreboard, cluster.name, environment.progress_port)
    log.info("%s, rank %d of %d; progress on port %s", cluster.name, cluster.rank, cluster.size, port)
    check_batch(options, cluster.size)
    if environment.checkpoint_dir is not None and environment.job_uid is not None:
        (write_marker if cluster.is_chief else check_marker)(environment.checkpoint_dir, environment.job_uid)
    elif environment.checkpoint_dir is None:
        log.info("no checkpoint directory: a restart begins at step 0")
    program_function = load_program(options.program)
    stop = StopRequest()

    import tensorflow as tf

    from greentrain_trainer.strategy import is_lost_peer

    strategy = None
    try:
        strategy = _join(environment, stop, pipe)
        # A chief without a marker yet may have been overtaken; now that it has joined, its answer counts.
        if environment.checkpoint_dir is not None and environment.job_uid is not None:
            check_marker(environment.checkpoint_dir, environment.job_uid)
        return _train(options, environment, scoreboard, stop, strategy, program_function)
    except tf.errors.OpError as error:
        when = f"at step {scoreboard.progress.step}" if strategy is not None else "before training began"
        if cluster.size > 1 and is_lost_peer(error):
            _blame_peer(error, when, stop)
        raise failed(f"TensorFlow failed {when}: {_first_line(error)}") from error


def _blame_peer(error: BaseException, when: str, stop: StopRequest) -> NoReturn:
    log.warning("a collective failed: %s", _first_line(error))
    if stop.asked:
        raise stopped(
            f"Stopped on request {when}; another worker left before a common stop was agreed."
        ) from None
    raise peer_lost(f"Another worker was lost {when}: {_first_line(error)}") from None


def _join(environment: Environment, stop: StopRequest, pipe: Pipe) -> Any:
    started = time.monotonic()
    from greentrain_trainer.strategy import build_strategy

    cluster = environment.cluster
    if cluster.size > 1:
        log.info(
            "waiting for %d other workers, %g s at most", cluster.size - 1, environment.start_timeout_seconds
        )
    strategy = build_strategy(cluster, environment.peer_timeout_seconds)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.asked = True

    signal.signal(signal.SIGTERM, on_signal)
    pipe.joined()
    log.info(
        "ready after %.1f s: %d replicas train together",
        time.monotonic() - started,
        strategy.num_replicas_in_sync,
    )
    return strategy


def _train(
    options: Options,
    environment: Environment,
    scoreboard: Scoreboard,
    stop: StopRequest,
    strategy: Any,
    program_function: Any,
) -> Ending:
    import keras
    import tensorflow as tf

    from greentrain_trainer.checkpoints import Checkpoints
    from greentrain_trainer.course import Course
    from greentrain_trainer.draws import Draws
    from greentrain_trainer.fit import train_fit
    from greentrain_trainer.loop import train_custom
    from greentrain_trainer.strategy import RankSum

    cluster = environment.cluster
    # Again, now that the GPUs of all workers are counted.
    check_batch(options, strategy.num_replicas_in_sync)
    keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    settings = Settings(
        options.steps, options.global_batch_size, options.learning_rate, options.seed, options.settings
    )
    program = program_function(settings)
    if not isinstance(program, Program):
        raise failed(
            f"Program {options.program!r} returned {type(program).__name__}; it must return a greentrain_trainer.Program."
        )
    with strategy.scope():
        model = program.model()
        if not model.built:
            raise failed(
                "The program's model is not built; give its first layer an input shape (keras.Input)."
            )
        optimizer = program.optimizer()
        optimizer.build(model.trainable_variables)
        draws = Draws(model)
    rank_sum = RankSum(strategy)
    checkpoints = restored = None
    if environment.checkpoint_dir is not None:
        checkpoints = Checkpoints(environment.checkpoint_dir, model, optimizer, options.keep_checkpoints)
        restored = checkpoints.restore(rank_sum, cluster.is_chief)
    scoreboard.begin(restored.step if restored else 0, restored)
    log.info(
        "attempt %d begins at step %d of %d", environment.attempt, scoreboard.progress.step, options.steps
    )
    course = Course(
        options,
        program,
        strategy,
        model,
        optimizer,
        draws,
        build_shard(options.global_batch_size, cluster.rank, cluster.size),
        stop,
        scoreboard,
        checkpoints,
        options.model_dir or environment.checkpoint_dir,
        cluster.is_chief,
    )
    # A stop asked for while the model was built or restored: agreed on now, not after a first step, whose
    # compilation can take minutes.
    if not rank_sum(int(stop.asked)):
        (train_fit if options.loop == "fit" else train_custom)(course)
    return _conclude(course, environment, rank_sum)


def _conclude(course: Course, environment: Environment, rank_sum: Any) -> Ending:
    """Save, agree with all ranks on what was saved, and leave together."""
    import tensorflow as tf

    from greentrain_trainer.checkpoints import checkpoint_path
    from greentrain_trainer.strategy import is_lost_peer

    cluster, scoreboard = environment.cluster, course.scoreboard
    done = course.step >= course.options.steps
    if course.step:
        course.save_checkpoint()
    if done:
        course.finish()
        course.evaluate()
        course.save_model()
    # The barrier: no rank leaves, and the chief does not name the checkpoint, before it is saved.
    saved = course.step if cluster.is_chief and course.checkpoints else 0
    try:
        confirmed = rank_sum(saved)
    except tf.errors.OpError as error:
        if not is_lost_peer(error):
            raise
        # What had to be saved is saved, so the chief has done its part; another rank cannot know that.
        log.warning("a worker left before the end was agreed: %s", _first_line(error))
        if not cluster.is_chief:
            _blame_peer(error, f"at step {course.step}", course.stop)
        confirmed = saved
    if confirmed and not cluster.is_chief and environment.checkpoint_dir is not None:
        path = checkpoint_path(environment.checkpoint_dir, confirmed)
        scoreboard.confirm(Checkpoint(step=confirmed, path=str(path)))
    if cluster.size > 1:
        time.sleep(LINGER_SECONDS * (2 if cluster.is_chief else 1))
    if done:
        return finished(f"Trained {course.step} steps.")
    kept = "" if course.checkpoints else ", and nothing was saved: there is no checkpoint directory"
    return stopped(f"Stopped on request after step {course.step} of {course.options.steps}{kept}.")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:400]
