"""Whether and when a call is retried. The tests read the waits, and never wait."""

from __future__ import annotations

from contextlib import suppress
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


def waits_of(error: BaseException, repeatable: bool = True, times: int = 10**6, **limits: Any) -> list[float]:
    """Return the waits of a call that ends in the error so many times, and then well."""
    waits: list[float] = []
    left = iter(range(times))

    def attempt() -> None:
        for _ in left:
            raise error

    with suppress(type(error)):
        Retrying(**retry_policy(repeatable, **limits), sleep=waits.append)(attempt)
    return waits


TRANSIENT = [ServerError, ResponseError, ConnectionLostError, CallTimeoutError]


@pytest.mark.parametrize(
    ("kind", "repeatable", "retries"),
    [
        *((kind, True, 3) for kind in (*TRANSIENT, ThrottledError)),
        *((kind, True, 0) for kind in (AddressBannedError, AccessTokenError, QuotaExhaustedError,
                                       ConferenceClosedError, CertificateError, RedirectError, ValueError)),
        *((kind, False, 0) for kind in (*TRANSIENT, AddressBannedError)),
        (ThrottledError, False, 3),
    ],
)  # fmt: skip
def test_a_fault_that_may_pass_is_retried_as_often_as_allowed_if_that_does_no_harm(
    kind: type[DingTalkError], repeatable: bool, retries: int
) -> None:
    error = kind("x")
    error.uncertain = kind in TRANSIENT
    assert len(waits_of(error, repeatable, max_attempts=4)) == retries
    assert len(waits_of(error, repeatable, max_attempts=4, times=2)) == min(retries, 2)
    assert len(waits_of(error, repeatable, max_attempts=1)) == 0


def test_the_waits_grow_and_differ() -> None:
    runs = [waits_of(ServerError("x"), max_attempts=6) for _ in range(20)]
    for waits in runs:
        assert all(0.5 * 2**n <= wait <= 0.5 * 2**n + 0.5 for n, wait in enumerate(waits))
    assert len({waits[0] for waits in runs}) > 1, "callers that fail together must not come back together"


def test_a_wait_is_as_long_as_dingtalk_asks_if_that_fits() -> None:
    waits = waits_of(ThrottledError("x", retry_after=3.0), max_attempts=4)
    assert len(waits) == 3
    assert min(waits) >= 3.0
    assert waits_of(ThrottledError("x", retry_after=4.0), times=1, max_seconds=60) == [4.0]
    assert waits_of(ThrottledError("x", retry_after=60.0), max_seconds=59.0) == []
