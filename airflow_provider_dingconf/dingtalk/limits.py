"""How much one call may cost: attempts and seconds in all."""

from __future__ import annotations

from airflow_provider_dingconf.dingtalk.errors import InvalidInputError

MAX_ATTEMPTS = 5
MAX_SECONDS = 60.0


def check_limits(max_attempts: object, max_seconds: object) -> None:
    """Check the limits of a call.

    :raises InvalidInputError: one of them is not a positive number.
    """
    if isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or max_attempts < 1:
        raise InvalidInputError(f"max_attempts: {max_attempts!r} is not a whole number of at least 1")
    if isinstance(max_seconds, bool) or not isinstance(max_seconds, (int, float)) or not max_seconds > 0:
        raise InvalidInputError(f"max_seconds: {max_seconds!r} is not a number of seconds above 0")
