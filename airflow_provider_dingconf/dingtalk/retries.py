"""Whether and when a call is tried again: one policy of tenacity's parts, for the sync and the async path."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, TypedDict

from tenacity import (
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
    wait_random,
)
from tenacity.stop import stop_base

from airflow_provider_dingconf.dingtalk.errors import ThrottledError, TransientError
from airflow_provider_dingconf.dingtalk.limits import MAX_ATTEMPTS, MAX_SECONDS, check_limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity.retry import retry_base

    from airflow_provider_dingconf.dingtalk.calls import Call

_backoff = wait_exponential(multiplier=0.5, max=20) + wait_random(0, 0.5)


class Policy(TypedDict):
    """The arguments that make a ``Retrying`` or an ``AsyncRetrying``."""

    stop: stop_base
    wait: Callable[[RetryCallState], float]
    retry: retry_base
    reraise: bool


def wait_as_asked(state: RetryCallState) -> float:
    """Return the seconds to wait: exponential, with jitter, and no less than DingTalk asks for."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, TransientError) else None
    return max(_backoff(state), asked or 0.0)


class _StopBeforeWait(stop_base):
    """Stop where the next wait would be too long to sit out."""

    def __init__(self, longest: float) -> None:
        self.longest = longest

    def __call__(self, state: RetryCallState) -> bool:
        return state.upcoming_sleep > self.longest


def policy(
    call: Call,
    max_attempts: int = MAX_ATTEMPTS,
    max_seconds: float = MAX_SECONDS,
    max_wait: float | None = None,
) -> Policy:
    """Return the policy for one call.

    A wait that does not fit into what is left of the time is not begun: the error is raised at once,
    and its ``retry_after`` says how long it would have been.

    :param call: what is called; a call that cannot be repeated is tried again only where DingTalk
        refused it for being too frequent.
    :param max_attempts: attempts in all.
    :param max_seconds: seconds in all, waits included.
    :param max_wait: seconds of one wait, over which the error is raised instead; None for no such limit.
    """
    check_limits(max_attempts, max_seconds, max_wait)
    return _policy(call.repeatable, max_attempts, max_seconds, max_wait)


@lru_cache(maxsize=64)  # it is the same for call after call
def _policy(repeatable: bool, max_attempts: int, max_seconds: float, max_wait: float | None) -> Policy:
    longest = math.inf if max_wait is None else max_wait

    def may_repeat(error: BaseException) -> bool:
        return (
            isinstance(error, TransientError)
            and error.repeat
            and (repeatable or isinstance(error, ThrottledError))
        )

    return {
        "stop": stop_after_attempt(max_attempts) | stop_before_delay(max_seconds) | _StopBeforeWait(longest),
        "wait": wait_as_asked,
        "retry": retry_if_exception(may_repeat),
        "reraise": True,
    }
