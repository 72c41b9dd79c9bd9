"""The limits of one call and of many, and the checks of the parameters that set them."""

from __future__ import annotations

from typing import TypeGuard

from airflow_provider_dingconf.dingtalk.errors import InvalidInputError
from airflow_provider_dingconf.dingtalk.inputs import shown

MAX_ATTEMPTS = 5
MAX_SECONDS = 60.0

LONGEST_SECONDS = 86_400  # a day: more is a mistake, and more than some timers can hold
CONCURRENCY = 20
CALLS_PER_SECOND = 18.0  # DingTalk allows a standard organisation 20 for each app and API
STREAM_SILENCE = 1_800.0  # seconds without a message after which the event stream is opened again

SECONDS = f"a number of seconds above 0 and up to a day ({LONGEST_SECONDS})"  # what is_seconds accepts


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number; a boolean is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_seconds(value: object) -> TypeGuard[float]:
    """Return whether a value is a number of seconds above 0, up to a day."""
    return is_number(value) and 0 < value <= LONGEST_SECONDS


def check_limits(max_attempts: object, max_seconds: object) -> None:
    """Check the limits of a call; raise an InvalidInputError if one is invalid, as all checks here do."""
    check_count("max_attempts", max_attempts)
    if not is_seconds(max_seconds):
        raise InvalidInputError(f"max_seconds: {shown(max_seconds)} is not {SECONDS}")


def check_bulk_limits(concurrency: object, calls_per_second: object = None) -> None:
    """Check the limits for many meetings."""
    check_count("concurrency", concurrency)
    if calls_per_second is not None and not (is_number(calls_per_second) and calls_per_second > 0):
        raise InvalidInputError(f"calls_per_second: {shown(calls_per_second)} is not a number above 0")


def check_count(name: str, value: object) -> None:
    """Check that a value is a whole number of at least 1."""
    if not is_number(value) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"{name}: {shown(value)} is not a whole number of at least 1")
