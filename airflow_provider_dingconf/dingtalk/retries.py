"""Whether and when a call is retried: a policy made of tenacity's parts."""

from __future__ import annotations

from typing import Any

import tenacity

from airflow_provider_dingconf.dingtalk.errors import TransientError
from airflow_provider_dingconf.dingtalk.limits import MAX_ATTEMPTS, MAX_SECONDS

_backoff = tenacity.wait_exponential(multiplier=0.5, max=20) + tenacity.wait_random(0, 0.5)


def _wait_as_asked(state: tenacity.RetryCallState) -> float:
    """Return a wait that grows exponentially, with jitter; at least as many seconds as DingTalk asks for."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, TransientError) else None
    return max(_backoff(state), asked or 0.0)


def retry_policy(
    repeatable: bool, max_attempts: int = MAX_ATTEMPTS, max_seconds: float = MAX_SECONDS
) -> dict[str, Any]:
    """Return the policy for a call: the arguments of an ``AsyncRetrying``.

    A wait that does not fit into the remaining time does not begin: the error is raised at once.

    :param repeatable: whether the call may be repeated. If not, it is retried only if it took no effect.
    """

    def may_repeat(error: BaseException) -> bool:
        if not isinstance(error, TransientError) or not error.repeat:
            return False
        return repeatable or not error.uncertain

    return {
        "stop": tenacity.stop_after_attempt(max_attempts) | tenacity.stop_before_delay(max_seconds),
        "wait": _wait_as_asked,
        "retry": tenacity.retry_if_exception(may_repeat),
        "reraise": True,
    }
