"""Errors of a node's devices, each named after what the caller does about it.

NVML, RAPL and cgroups fail in dozens of ways. A reader that polls each second needs to know only whether to retry, to do
without, to ask an administrator, or to open everything again.
"""

from __future__ import annotations


class DeviceError(Exception):
    """Any of the errors below; the text is a whole sentence."""


class Unavailable(DeviceError):  # noqa: N818 - named after what to do next
    """Nothing of this interface can be read: wait, then open it again.

    `what` is the interface, `why` the reason, `remedy` what an administrator does if the error stays.
    """

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(f"{what} cannot be used: {why}. {remedy}")
        self.what = what
        self.why = why
        self.remedy = remedy


class Unsupported(DeviceError):  # noqa: N818 - named after what to do next
    """The machine or device has no `feature`: do without, a retry changes nothing."""

    def __init__(self, feature: str) -> None:
        super().__init__(f"There is no {feature} here.")
        self.feature = feature


class NotPermitted(DeviceError):  # noqa: N818 - named after what to do next
    """The device refuses this process; `needs` is what an administrator must grant it."""

    def __init__(self, device: str, needs: str) -> None:
        super().__init__(f"{device} refuses: {needs}.")
        self.device = device
        self.needs = needs


class OutOfRange(DeviceError):  # noqa: N818 - named after what to do next
    """The device does not accept this value, now or later: `allowed` is what it accepts."""

    def __init__(self, device: str, value: str, allowed: str) -> None:
        super().__init__(f"{device} does not take {value}: {allowed}.")
        self.device = device


class Retry(DeviceError):  # noqa: N818 - named after what to do next
    """No answer this time for the reason `why`; retry after `after_seconds`, the device counts on meanwhile."""

    def __init__(self, device: str, why: str, after_seconds: float = 1.0) -> None:
        super().__init__(f"{device} gave no answer: {why}.")
        self.device = device
        self.why = why
        self.after_seconds = after_seconds


class Hanging(Retry):
    """A call to the device has not returned for `seconds`; the device is read again once it has."""

    def __init__(self, device: str, seconds: float) -> None:
        super().__init__(device, f"a call has not returned for {seconds:.1f} s")
        self.seconds = seconds


class Gone(DeviceError):  # noqa: N818 - named after what to do next
    """The device no longer exists or needs a reset: its work is lost until an administrator or a reboot brings it back."""

    def __init__(self, device: str, why: str) -> None:
        super().__init__(f"{device} is gone: {why}.")
        self.device = device
        self.why = why
