"""How much one call may cost, and how fast many may be made."""

from __future__ import annotations

from typing import TypeGuard

from airflow_provider_dingconf.dingtalk.errors import InvalidInputError

MAX_ATTEMPTS = 5
MAX_SECONDS = 60.0

LONGEST_SECONDS = 86_400
"""A day: more is a mistake, and too much for the clocks of a transport."""

CONCURRENCY = 20
CALLS_PER_SECOND = 18.0
"""DingTalk allows a standard organisation 20 calls a second for each app and API: faster ones are refused."""

STREAM_SILENCE = 1_800.0
"""Seconds without a message after which the event stream is opened anew."""


def check_limits(max_attempts: object, max_seconds: object) -> None:
    """Check the limits of a call.

    :raises InvalidInputError: one of them is not such a number, or is more than a day.
    """
    if isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or max_attempts < 1:
        raise InvalidInputError(f"max_attempts: {max_attempts!r} is not a whole number of at least 1")
    if not _is_number(max_seconds) or not 0 < max_seconds <= LONGEST_SECONDS:
        asked = f"a number of seconds above 0 and up to a day ({LONGEST_SECONDS})"
        raise InvalidInputError(f"max_seconds: {max_seconds!r} is not {asked}")


def check_bulk_limits(concurrency: object, calls_per_second: object = None) -> None:
    """Check how fast many meetings may be locked.

    :raises InvalidInputError: one of them is not a positive number.
    """
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise InvalidInputError(f"concurrency: {concurrency!r} is not a whole number of at least 1")
    if calls_per_second is not None and not (_is_number(calls_per_second) and calls_per_second > 0):
        raise InvalidInputError(f"calls_per_second: {calls_per_second!r} is not a number above 0")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
