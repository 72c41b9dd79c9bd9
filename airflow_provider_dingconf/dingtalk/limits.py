"""How much one call may cost, and how fast many may be made."""

from __future__ import annotations

from airflow_provider_dingconf.dingtalk.errors import InvalidInputError

MAX_ATTEMPTS = 5
MAX_SECONDS = 60.0

CONCURRENCY = 20
CALLS_PER_SECOND = 200.0
"""DingTalk bans a public address that makes more than 10,000 calls in 20 s, over all its apps."""


def check_limits(max_attempts: object, max_seconds: object) -> None:
    """Check the limits of a call.

    :raises InvalidInputError: one of them is not a positive number.
    """
    if isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or max_attempts < 1:
        raise InvalidInputError(f"max_attempts: {max_attempts!r} is not a whole number of at least 1")
    if isinstance(max_seconds, bool) or not isinstance(max_seconds, (int, float)) or not max_seconds > 0:
        raise InvalidInputError(f"max_seconds: {max_seconds!r} is not a number of seconds above 0")


def check_bulk_limits(concurrency: object, calls_per_second: object) -> None:
    """Check how fast many meetings may be locked.

    :raises InvalidInputError: one of them is not a positive number.
    """
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise InvalidInputError(f"concurrency: {concurrency!r} is not a whole number of at least 1")
    if (
        isinstance(calls_per_second, bool)
        or not isinstance(calls_per_second, (int, float))
        or not calls_per_second > 0
    ):
        raise InvalidInputError(f"calls_per_second: {calls_per_second!r} is not a number above 0")
