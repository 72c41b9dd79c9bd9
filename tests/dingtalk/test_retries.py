"""Whether and when a call is retried. The test reads the waits and never sits them out."""

from __future__ import annotations

from typing import Any

import pytest
from tenacity import Retrying

from airflow_provider_dingconf.dingtalk.errors import (
    AccessTokenError,
    AddressBannedError,
    CallTimeoutError,
    CertificateError,
    ConferenceClosedError,
    ConnectionLostError,
    DingTalkError,
    QuotaExhaustedError,
    RedirectError,
    ResponseError,
    ServerError,
    ThrottledError,
)
from airflow_provider_dingconf.dingtalk.retries import retry_policy


def waits_before_the_end(
    error: BaseException, repeatable: bool = True, times: int | None = None, **limits: Any
) -> list[float]:
    """Return the waits of a call that ends in the error so many times; always where ``times`` is None."""
    waits: list[float] = []
    left = iter(range(10**6 if times is None else times))

    def attempt() -> str:
        for _ in left:
            raise error
        return "done"

    retrying = Retrying(**retry_policy(repeatable, **limits), sleep=waits.append)
    if times is None:
        with pytest.raises(type(error)):
            retrying(attempt)
    else:
        assert retrying(attempt) == "done"
    return waits


@pytest.mark.parametrize(
    "kind", [ServerError, ResponseError, ThrottledError, ConnectionLostError, CallTimeoutError]
)
def test_a_fault_that_may_pass_is_retried_as_often_as_allowed(kind: type[DingTalkError]) -> None:
    assert len(waits_before_the_end(kind("x"), max_attempts=4)) == 3
    assert len(waits_before_the_end(kind("x"), max_attempts=1)) == 0
    assert len(waits_before_the_end(kind("x"), times=2)) == 2


@pytest.mark.parametrize(
    "kind",
    [AddressBannedError, AccessTokenError, QuotaExhaustedError, ConferenceClosedError, CertificateError,
     RedirectError, ValueError],
)  # fmt: skip
def test_a_fault_that_does_not_pass_is_not_retried(kind: type[Exception]) -> None:
    assert waits_before_the_end(kind("x")) == []


def test_a_call_that_creates_something_is_retried_only_if_it_was_throttled() -> None:
    for kind in (ServerError, ResponseError, ConnectionLostError, CallTimeoutError):
        assert waits_before_the_end(kind("x"), False) == []
    assert len(waits_before_the_end(ThrottledError("x"), False, times=1)) == 1
    assert waits_before_the_end(AddressBannedError("x"), False) == []


def test_the_waits_grow_and_differ() -> None:
    runs = [waits_before_the_end(ServerError("x"), max_attempts=6) for _ in range(20)]
    for waits in runs:
        assert all(0.5 * 2**n <= wait <= 0.5 * 2**n + 0.5 for n, wait in enumerate(waits))
    assert len({waits[0] for waits in runs}) > 1, "callers that fail together must not come back together"


def test_no_wait_is_shorter_than_dingtalk_asks_for() -> None:
    waits = waits_before_the_end(ThrottledError("x", retry_after=3.0), max_attempts=4)
    assert all(wait >= 3.0 for wait in waits)
    assert len(waits) == 3


def test_a_wait_is_sat_out_only_if_it_fits() -> None:
    assert waits_before_the_end(ThrottledError("x", retry_after=4.0), times=1, max_seconds=60) == [4.0]
    assert waits_before_the_end(ThrottledError("x", retry_after=60.0), max_seconds=59.0) == []
