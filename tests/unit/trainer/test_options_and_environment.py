"""What the command line and the environment say, and the sentence for each fault in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from greentrain_trainer.cluster import parse_cluster
from greentrain_trainer.ending import EXIT_USAGE, Ending
from greentrain_trainer.environment import parse_environment
from greentrain_trainer.options import Options, parse_options
from greentrain_trainer.training import check_batch


def test_a_program_alone_takes_every_default() -> None:
    assert parse_options(["digits"]) == Options("digits")


def test_every_option_is_understood() -> None:
    asked = parse_options(
        [
            "pkg.mine:train",
            "--steps",
            "9",
            "--global-batch-size",
            "8",
            "--learning-rate",
            "0.5",
            "--seed",
            "0",
            "--checkpoint-every",
            "0",
            "--keep-checkpoints",
            "1",
            "--evaluate-every",
            "4",
            "--loop",
            "fit",
            "--deterministic",
            "--model-dir",
            "/models",
            "--step-delay-seconds",
            "0.5",
            "--step-cpu-seconds",
            "0.25",
            "--set",
            "width=32",
            "--set",
            "depth=a=b",
        ]
    )
    assert asked == Options(
        program="pkg.mine:train",
        steps=9,
        global_batch_size=8,
        learning_rate=0.5,
        seed=0,
        checkpoint_every=0,
        keep_checkpoints=1,
        evaluate_every=4,
        loop="fit",
        deterministic=True,
        model_dir=Path("/models"),
        step_delay_seconds=0.5,
        step_cpu_seconds=0.25,
        settings={"width": "32", "depth": "a=b"},
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "The following arguments are required: PROGRAM"),
        (["digits", "--steps", "many"], "Argument --steps: 'many' is not a whole number of at least 1"),
        (["digits", "--steps", "0"], "Argument --steps: '0' is not a whole number of at least 1"),
        (
            ["digits", "--checkpoint-every", "-1"],
            "Argument --checkpoint-every: '-1' is not a whole number of at least 0",
        ),
        (["digits", "--learning-rate", "0"], "Argument --learning-rate: '0' is not a number above 0"),
        (
            ["digits", "--learning-rate", "nan"],
            "Argument --learning-rate: 'nan' is not a number of at least 0",
        ),
        (["digits", "--loop", "keras"], "Argument --loop: invalid choice: 'keras'"),
        (["digits", "--set", "width"], "Argument --set: 'width' is not NAME=VALUE"),
        (["digits", "--step", "9"], "Unrecognized arguments: --step 9"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(arguments: list[str], words: str) -> None:
    with pytest.raises(Ending) as raised:
        parse_options(arguments)
    assert raised.value.code == EXIT_USAGE
    assert raised.value.reason.startswith(words)


def _config(cluster: object, kind: str = "worker", index: object = 0) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize("text", [None, ""])
def test_without_tf_config_there_is_one_rank_and_it_is_the_chief(text: str | None) -> None:
    cluster = parse_cluster(text)
    assert (cluster.size, cluster.rank, cluster.is_chief, cluster.name) == (1, 0, True, "worker-0")


@pytest.mark.parametrize(
    ("jobs", "kind", "index", "rank", "is_chief", "leader"),
    [
        ({"worker": ["a:1", "b:1"]}, "worker", 0, 0, True, "/job:worker/replica:0/task:0"),
        ({"worker": ["a:1", "b:1"]}, "worker", 1, 1, False, "/job:worker/replica:0/task:0"),
        ({"chief": ["c:1"], "worker": ["a:1"]}, "chief", 0, 0, True, "/job:chief/replica:0/task:0"),
        ({"chief": ["c:1"], "worker": ["a:1"]}, "worker", 0, 1, False, "/job:chief/replica:0/task:0"),
        ({"chief": ["c:1"]}, "chief", 0, 0, True, "/job:chief/replica:0/task:0"),
    ],
)
def test_the_chief_comes_first_and_else_worker_0_does_its_work(
    jobs: dict[str, list[str]], kind: str, index: int, rank: int, is_chief: bool, leader: str
) -> None:
    cluster = parse_cluster(_config(jobs, kind, index))
    assert cluster.size == sum(map(len, jobs.values()))
    assert (cluster.rank, cluster.is_chief, cluster.leader) == (rank, is_chief, leader)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "TF_CONFIG is not JSON"),
        ("[]", "TF_CONFIG must have the maps `cluster` and `task`"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG must have the maps `cluster` and `task`"),
        (_config({"worker": "a:1"}), "TF_CONFIG's cluster.worker must be a list of host:port"),
        (_config({"worker": ["a"]}), "TF_CONFIG's cluster.worker must be a list of host:port"),
        (_config({"worker": ["a:1"], "ps": ["p:1"]}), "TF_CONFIG names replica type 'ps'"),
        (_config({"worker": ["a:1"]}, "evaluator"), "TF_CONFIG names replica type 'evaluator'"),
        (_config({"chief": ["a:1", "b:1"]}, "chief"), "TF_CONFIG has 2 chiefs"),
        (
            _config({"worker": ["a:1"]}, "worker", 1),
            "TF_CONFIG says this task is worker 1, and its cluster has 1",
        ),
        (_config({"worker": ["a:1"]}, "worker", "0"), "TF_CONFIG says this task is worker '0'"),
        (_config({"worker": ["a:1"]}, "worker", True), "TF_CONFIG says this task is worker True"),
        (_config({"worker": ["a:1"]}, "chief"), "TF_CONFIG says this task is chief 0, and its cluster has 0"),
    ],
)
def test_a_wrong_tf_config_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(Ending) as raised:
        parse_cluster(text)
    assert raised.value.code == EXIT_USAGE
    assert raised.value.reason.startswith(words)


def test_an_empty_environment_is_a_single_rank_that_saves_nothing() -> None:
    environment = parse_environment({})
    assert environment.checkpoint_dir is None
    assert environment.job_uid is None
    assert environment.termination_log == Path("/dev/termination-log")
    assert (environment.progress_port, environment.peer_timeout_seconds, environment.attempt) == (8471, 10, 1)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("GREENTRAIN_PEER_TIMEOUT_SECONDS", "soon", "it must be a number of seconds above 0, such as 10."),
        ("GREENTRAIN_PEER_TIMEOUT_SECONDS", "0", "it must be a number of seconds above 0, such as 10."),
        ("GREENTRAIN_START_TIMEOUT_SECONDS", "inf", "it must be a number of seconds above 0, such as 600."),
        ("GREENTRAIN_GRACE_PERIOD_SECONDS", "-3", "it must be a number of seconds above 0, such as 30."),
        ("GREENTRAIN_ATTEMPT", "0", "it must be a whole number from 1 to 2147483647."),
        ("GREENTRAIN_PROGRESS_PORT", "70000", "it must be a whole number from 0 to 65535."),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(name: str, value: str, words: str) -> None:
    with pytest.raises(Ending) as raised:
        parse_environment({name: value})
    assert raised.value.code == EXIT_USAGE
    assert raised.value.reason == f"{name} is {value!r}; {words}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options("digits", global_batch_size=1), "--global-batch-size 1 is less than the 2 replicas"),
        (
            Options("digits", global_batch_size=63, loop="fit"),
            "--global-batch-size 63 cannot be shared evenly by 2",
        ),
    ],
)
def test_a_batch_the_workers_cannot_share_is_refused(options: Options, words: str) -> None:
    with pytest.raises(Ending) as raised:
        check_batch(options, 2)
    assert raised.value.code == EXIT_USAGE
    assert raised.value.reason.startswith(words)


def test_the_custom_loop_shares_an_odd_batch() -> None:
    check_batch(Options("digits", global_batch_size=63), 2)
