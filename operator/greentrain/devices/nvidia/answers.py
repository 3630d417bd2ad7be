"""What NVML's return codes mean for the caller: which pass by themselves, which are a card's, which mean that NVML is lost.

The texts follow NVML's reference (docs.nvidia.com/deploy/nvml-api, nvmlReturn_t).
"""

from __future__ import annotations

import pynvml

from greentrain.devices.errors import DeviceError, Gone, NotPermitted, Retry, Unavailable, Unsupported

ABSENT = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
"""The card, or this NVML, has no such thing."""
STALE = frozenset(
    {pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_GPU_NOT_FOUND}
)
"""The card is not where it was, or its handle is out of date."""
LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED})
"""The card needs an administrator: a reset, or a reboot of its node."""

_NO_DRIVER = (
    "Install NVIDIA's driver on this node, and run the agent's pod with the nvidia runtime class and"
    " NVIDIA_DRIVER_CAPABILITIES=utility."
)
UNUSABLE: dict[int, tuple[str, str]] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: ("libnvidia-ml.so.1 is not found", _NO_DRIVER),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the driver is not loaded",
        "Load it (modprobe nvidia, or wait for the driver's pod), and see dmesg if it does not load.",
    ),
    # A loaded library stays with its program, so opening it again may not be enough.
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the loaded driver is of another version than libnvidia-ml.so.1",
        "After an update of the driver restart the agent's pod; if that does not help, reboot the node.",
    ),
    pynvml.NVML_ERROR_UNINITIALIZED: (
        "it is not initialised any more",
        "It is initialised when opened again.",
    ),
}
"""Answers that concern no single card: the reason and the remedy."""
_ELSE_UNUSABLE = "See dmesg and nvidia-smi on this node; if neither answers, reboot it."


def unusable(code: int) -> Unavailable:
    """The error for an answer that concerns no single card, with its remedy."""
    why, remedy = UNUSABLE.get(code, (f"it answered «{pynvml.NVMLError(code)}»", _ELSE_UNUSABLE))
    return Unavailable("NVML", why, remedy)


def translate(error: pynvml.NVMLError, device: str) -> DeviceError:
    """The error for an answer about one card: its own, unless NVML as a whole is lost."""
    code: int = error.value
    if code in UNUSABLE:
        return unusable(code)
    if code in ABSENT:
        return Unsupported(f"such call to NVML for {device}")
    if code == pynvml.NVML_ERROR_NO_PERMISSION:
        return NotPermitted(device, "NVML demands root; run the agent's pod privileged")
    if code == pynvml.NVML_ERROR_OPERATING_SYSTEM:
        return NotPermitted(device, "its device file is blocked; run the agent's pod privileged")
    if code == pynvml.NVML_ERROR_RESET_REQUIRED:
        return Gone(device, "it needs a reset (nvidia-smi --gpu-reset, or reboot the node)")
    if code == pynvml.NVML_ERROR_GPU_IS_LOST:
        return Gone(device, "it fell off the bus or cannot be reached; drain and reboot the node")
    if code in STALE:
        return Gone(device, "NVML does not know it any more")
    return Retry(device, f"NVML answered «{error}»")


def closed() -> Unavailable:
    """The error for a request after `close`."""
    return Unavailable("NVML", "it was closed", "It is initialised when opened again.")


def silent(seconds: float) -> Unavailable:
    """The error for a request that concerns no single card and was not answered in time."""
    return Unavailable("NVML", f"it did not answer within {seconds:g} s", _ELSE_UNUSABLE)
