"""The TFJobs of examples/tfjob become what `converted/` holds: jobs the operator admits, whose pods a server takes.

After a deliberate change, write the goldens anew and read what changed:

    for f in examples/tfjob/*.yaml; do n=$(basename $f .yaml)
      greentrain convert $f -o tests/contract/tfjob/converted/$n.yaml 2>tests/contract/tfjob/converted/$n.txt; done
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from greentrain.api.status import AttemptStatus, GreenTrainingJobStatus
from greentrain.cli.main import Streams, main
from greentrain.core.admission import Admitted, decide_admission
from greentrain.core.gang.manifests import build_pod, ranks, replica_counts
from greentrain.core.seen.snapshot import Job
from greentrain.kube.template import find_template_problems
from sandbox.ports import find_free_ports

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples" / "tfjob").glob("*.yaml"))
CONVERTED = Path(__file__).parent / "converted"

Json = dict[str, Any]
each = pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)


def convert(path: Path) -> tuple[int, str, str]:
    """Exit code, output and what was said."""
    streams = Streams(lambda: b"", io.StringIO(), io.StringIO())
    code = main(["convert", str(path)], streams)
    assert isinstance(streams.stdout, io.StringIO)
    assert isinstance(streams.stderr, io.StringIO)
    return code, streams.stdout.getvalue(), streams.stderr.getvalue().replace(f"{ROOT}/", "")


def job_of(text: str) -> Job:
    """The GreenTrainingJob of an output, as a server would store it."""
    body = next(d for d in yaml.safe_load_all(text) if d["kind"] == "GreenTrainingJob")
    meta = body["metadata"]
    name = meta.get("name") or f"{meta['generateName']}x7k2p"
    return Job(
        meta.get("namespace", "default"), name, "uid-1", 1, "1", body["spec"], GreenTrainingJobStatus()
    )


def pods_of(job: Job) -> list[Json]:
    """The pods of its first attempt."""
    verdict = decide_admission(job, find_template_problems(job.spec), privileged=True)
    assert isinstance(verdict, Admitted), verdict.message
    counts = replica_counts(verdict.spec)
    attempt = AttemptStatus(number=1, replicas=counts, start_time="2026-01-01T00:00:00Z")
    return [build_pod(job, verdict.spec, attempt, rank) for rank in ranks(counts)]


@each
def test_an_example_becomes_its_golden_and_says_what_differs(example: Path) -> None:
    code, out, said = convert(example)
    assert code == 0
    assert out == (CONVERTED / example.name).read_text()
    assert said == (CONVERTED / f"{example.stem}.txt").read_text()


@each
def test_converting_the_result_changes_nothing(example: Path) -> None:
    golden = CONVERTED / example.name
    code, out, said = convert(golden)
    assert (code, out) == (0, golden.read_text())
    assert "is a GreenTrainingJob already; passed on unchanged" in said


@each
def test_the_comments_of_an_example_are_kept(example: Path) -> None:
    comments = re.findall(r"(?m)(?:^|\s)(# .*)$", example.read_text())
    # The lines that went took their own comments along.
    gone = {"# left over from a run by hand"}
    out = (CONVERTED / example.name).read_text()
    assert comments
    assert [c for c in comments if c not in out and c not in gone] == []


@each
def test_a_server_takes_the_pods_of_a_converted_job(example: Path) -> None:
    for pod in pods_of(job_of((CONVERTED / example.name).read_text())):
        kubernetes_validate.validate(pod, "1.36", strict=True)


@each
def test_an_example_that_ran_as_root_still_may(example: Path) -> None:
    (tfjob,) = (d for d in yaml.safe_load_all(example.read_text()) if d["kind"] == "TFJob")
    roles = [
        r["template"]["spec"] for r in tfjob["spec"]["tfReplicaSpecs"].values() if r.get("replicas") != 0
    ]
    named = all("runAsUser" in r.get("securityContext", {}) for r in roles)
    pods = pods_of(job_of((CONVERTED / example.name).read_text()))
    assert {p["spec"]["securityContext"]["runAsNonRoot"] for p in pods} == {named}


def test_every_field_that_is_told_of_stands_in_the_documentation() -> None:
    page = (ROOT / "docs/tasks/tfjob.md").read_text()
    lines = [line for p in CONVERTED.glob("*.txt") for line in p.read_text().splitlines()]
    # A name may stand anywhere; the page speaks of names, not of where they stood.
    named = ("is the name of a Service TFJob made", "is a label TFJob sets")
    told = [line for line in lines if not any(words in line for words in named)]
    paths = re.findall(r": (?:spec|metadata)\.([^ ]*): ", "\n".join(told))
    fields = {re.split(r"[.\[]", re.sub(r"\[[^]]*\]|\{[^}]*\}", "", p).rstrip("."))[-1] for p in paths}
    assert len(fields) > 15
    assert [f for f in sorted(fields) if f not in page] == []


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["master", "worker-only", "lower-case-keys"])
def test_the_program_of_an_example_runs_under_the_converted_jobs_tf_config(name: str, tmp_path: Path) -> None:
    pods = pods_of(job_of((CONVERTED / f"{name}.yaml").read_text()))
    ports = find_free_ports(len(pods))
    here = {f"{p['spec']['hostname']}.": f"127.0.0.1:{port}" for p, port in zip(pods, ports, strict=True)}
    processes = []
    for pod in pods:
        (box,) = (c for c in pod["spec"]["containers"] if c["name"] == "tensorflow")
        env = {e["name"]: e["value"] for e in box["env"]} | {
            "HOME": str(tmp_path),
            "CUDA_VISIBLE_DEVICES": "",
        }
        if "TF_CONFIG" in env:
            config = json.loads(env["TF_CONFIG"])
            for addresses in config["cluster"].values():
                addresses[:] = [next(v for k, v in here.items() if a.startswith(k)) for a in addresses]
            env["TF_CONFIG"] = json.dumps(config)
        words = [*box["command"], *box.get("args", [])]
        assert words[0] == "python3"
        processes.append(
            subprocess.Popen(
                [sys.executable, *words[1:]],
                env={**os.environ, **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [p.communicate(timeout=300)[0] for p in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0] * len(pods), "\n".join(said)
    assert all(re.search("wanted|joined", text) for text in said)
