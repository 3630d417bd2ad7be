"""The one ReadWriteMany PersistentVolume: a folder of the machine both nodes see, writable by the trainer's user."""

from __future__ import annotations

import os

from sandbox.api import Api, ApiError, Json
from sandbox.state import Sandbox

NAME = "greentrain-sandbox"
STORAGE_CLASS = "greentrain-sandbox"
CAPACITY = "10Gi"
OWNER = 10001
"""User and group of the trainer image's processes."""

VOLUME_PATH = f"/api/v1/persistentvolumes/{NAME}"


def build_storage_class() -> Json:
    """The default storage class, which provisions nothing: claims are bound to the one volume."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
        "reclaimPolicy": "Retain",
    }


def build_volume(sandbox: Sandbox) -> Json:
    """The volume, a folder below the sandbox's directory."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": NAME},
        "spec": {
            "capacity": {"storage": CAPACITY},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            "hostPath": {"path": str(sandbox.volume), "type": "Directory"},
        },
    }


def apply_volume(api: Api, sandbox: Sandbox) -> str:
    """Make the folder, the class and the volume, and free the volume when its claim is gone; says what was done."""
    sandbox.volume.mkdir(parents=True, exist_ok=True)
    os.chown(sandbox.volume, OWNER, OWNER)
    sandbox.volume.chmod(0o2775)
    _create(api, "/apis/storage.k8s.io/v1/storageclasses", build_storage_class())
    if _create(api, "/api/v1/persistentvolumes", build_volume(sandbox)):
        return "made"
    volume = api.get(VOLUME_PATH)
    if volume.get("status", {}).get("phase") == "Released":
        # Retain keeps the dead claim's name on the volume without end; another claim can bind only without it.
        api.patch(VOLUME_PATH, {"spec": {"claimRef": None}})
        return "freed for a new claim, its files kept"
    return "there"


def _create(api: Api, path: str, body: Json) -> bool:
    try:
        api.post(path, body)
    except ApiError as error:
        if error.status == 409:
            return False
        raise
    return True
