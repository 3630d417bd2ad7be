"""What the API server's answers mean for whoever asked."""

from __future__ import annotations

import pytest

from greentrain.kube.client import ApiError


@pytest.mark.parametrize(
    ("status", "reason", "passing"),
    [
        (400, "BadRequest", False),
        (401, "Unauthorized", False),
        (403, "Forbidden", False),
        (404, "NotFound", False),
        (405, "MethodNotAllowed", False),
        (408, "Timeout", True),
        (409, "Conflict", True),
        (409, "AlreadyExists", False),
        (410, "Expired", True),
        (413, "RequestEntityTooLarge", False),
        (415, "UnsupportedMediaType", False),
        (422, "Invalid", False),
        (429, "TooManyRequests", True),
        (499, "ClientClosedRequest", False),
        (500, "InternalError", True),
        (501, "NotImplemented", True),
        (502, "BadGateway", True),
        (503, "ServiceUnavailable", True),
        (504, "Timeout", True),
        (599, "Unknown", True),
    ],
)
def test_trouble_that_passes_is_told_from_a_refusal(status: int, reason: str, passing: bool) -> None:
    assert ApiError(status, reason, "said so").passing is passing


@pytest.mark.parametrize(
    ("status", "message", "refuses"),
    [
        (400, "cannot be read", True),
        (413, "limit is 3145728", True),
        (422, "status.phase: Too long", True),
        (500, "etcdserver: request is too large", True),
        (503, "rpc error: trying to send message too large", True),
        (500, "etcdserver: leader changed", False),
        (403, "the object is too large for a policy", False),
        (404, "not found", False),
        (409, "the object has been modified", False),
        (410, "too old resource version", False),
        (429, "too many requests", False),
    ],
)
def test_what_was_sent_is_at_fault_only_where_the_server_says_so(
    status: int, message: str, refuses: bool
) -> None:
    assert ApiError(status, "Reason", message).refuses_content is refuses
