"""Names, labels and annotations: the one place where a string that others match on is spelled.

Objects are found again by these after an operator restart, so none of them may depend on anything but
the job's own name and the numbers given.
"""

from __future__ import annotations

GROUP = "greentrain.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "GreenTrainingJob"
PLURAL = "greentrainingjobs"
SINGULAR = "greentrainingjob"
SHORT_NAME = "gtj"

NODE_POWER_KIND = "NodePower"
NODE_POWER_PLURAL = "nodepowers"
NODE_POWER_SINGULAR = "nodepower"
NODE_POWER_SHORT_NAME = "npw"

FIELD_MANAGER = "greentrain-operator"
AGENT_FIELD_MANAGER = "greentrain-agent"

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "greentrain"
LABEL_JOB = f"{GROUP}/job-name"
LABEL_REPLICA_TYPE = f"{GROUP}/replica-type"
LABEL_REPLICA_INDEX = f"{GROUP}/replica-index"
LABEL_ATTEMPT = f"{GROUP}/attempt"
ANNOTATION_SPEC_HASH = f"{GROUP}/spec-hash"
"""On pods: the hash of the part of the spec their attempt was built from."""
ANNOTATION_BUDGETED = f"{GROUP}/budgeted"
"""On pods of a job that has a budget: an agent that knows no allowance for such a pod uses an allowance of 0 while the
operator is silent."""
ANNOTATION_UNATTENDED = f"{GROUP}/unattended-jobs"
"""On the operator's Lease: UIDs of the jobs that it cannot reconcile at present, separated by commas. For those it counts as
silent."""
LABEL_POD_SECURITY = f"{GROUP}/pod-security"
"""On a namespace, by an administrator: `privileged` lets its jobs request more than Pod Security's baseline."""
POD_SECURITY_PRIVILEGED = "privileged"
ANNOTATION_SCHEMA_HASH = f"{GROUP}/schema-hash"
"""On the CRD: hash of its schema, so that an operator recognises a CRD older than itself."""

DNS_LABEL_MAX = 63


def hostname(job: str, replica_type: str, index: int) -> str:
    """Stable host name of a rank, the same in every attempt."""
    return f"{job}-{replica_type.lower()}-{index}"


def pod_name(job: str, replica_type: str, index: int, attempt: int) -> str:
    """Pod name of a rank in one attempt, so that the pods of two attempts cannot be confused."""
    return f"{hostname(job, replica_type, index)}-{attempt}"


def service_name(job: str) -> str:
    """Name of the job's headless Service."""
    return job


def rank_address(job: str, namespace: str, replica_type: str, index: int) -> str:
    """DNS name of a rank inside the cluster, without a cluster domain (the pod's search list has it)."""
    return f"{hostname(job, replica_type, index)}.{service_name(job)}.{namespace}.svc"


def job_selector(job: str) -> str:
    """Label selector of everything a job owns."""
    return f"{LABEL_JOB}={job}"
