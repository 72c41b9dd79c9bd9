"""``DingTalkRetryPolicy``: Airflow retries a task when DingTalk allows it, and only if a retry can help.

It is for the parameter ``retry_policy`` of Airflow 3.3 and later, on any task that uses the hook. This
package's operators have it by default.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow import __version__ as airflow_version

try:
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
except ImportError:
    raise ImportError(
        f"DingTalkRetryPolicy needs Airflow 3.3 or later; this is Airflow {airflow_version}"
    ) from None

from airflow_provider_dingconf.dingtalk.errors import DingTalkError, Outcome

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

# The limit of Airflow's own growing delays. Its scheduler fails if a delay leads past the year 9999.
LONGEST_DELAY = timedelta(days=1)


class DingTalkRetryPolicy(RetryPolicy):
    """Decide whether and when Airflow retries a task, by the DingTalk error that failed the task.

    .. code-block:: python

        @task(retries=3, retry_policy=DingTalkRetryPolicy())
        def lock(conference_id):
            DingTalkConferenceHook().lock_conference(conference_id)

    After a throttled or banned call, Airflow retries the task after the time that DingTalk asked for, a day
    at most. An error that a retry cannot change fails the task at once. For any other exception, the task's
    ``retries`` and ``retry_delay`` apply.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Decide on one failure; the parameters are those of Airflow's ``RetryPolicy``."""
        error = _dingtalk_error(exception)
        if error is not None and error.outcome is not Outcome.RETRY:
            return RetryDecision.fail(reason=error.summary)
        if error is None or error.retry_after is None:
            return RetryDecision.default()
        delay = min(timedelta(seconds=error.retry_after), LONGEST_DELAY)
        return RetryDecision.retry(delay=delay, reason=error.summary)

    def serialize(self) -> dict[str, Any]:
        """Return the settings for the serialized DAG; there are none."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> DingTalkRetryPolicy:  # noqa: ARG003 - Airflow's
        """Return the policy of a serialized DAG."""
        return cls()


def _dingtalk_error(exception: BaseException | None) -> DingTalkError | None:
    """Return the DingTalk error in an exception or its causes, which can form a cycle."""
    seen: set[int] = set()
    while exception is not None and id(exception) not in seen:
        if isinstance(exception, DingTalkError):
            return exception
        seen.add(id(exception))
        exception = exception.__cause__
    return None
