"""Metrics of the requests to DingTalk, through Airflow's ``Stats``: what uses up the monthly quota.

``dingtalk.calls`` counts each request that was sent, retries and calls for an access token included. Its tags
are ``call``, such as ``lock`` or ``POST_conference_videoConferences_members_kick``, and ``outcome``:
``success``, an error code of :data:`~airflow_provider_dingconf.dingtalk.error_codes.ERRORS`, the error class
for any other code, or ``interrupted``. For StatsD without tags, ``dingtalk.calls.<call>.<outcome>`` counts
the same, with dots in the outcome as ``__``, unless Airflow's ``[metrics] legacy_names_on`` is False.

``dingtalk.throttled`` counts the requests that DingTalk refused as too frequent. ``dingtalk.token_fetches``
counts the access tokens that DingTalk gave.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import Stats, conf

from airflow_provider_dingconf.dingtalk.endpoints import ACCESS_TOKEN
from airflow_provider_dingconf.dingtalk.error_codes import find_code
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, ThrottledError

if TYPE_CHECKING:
    from airflow_provider_dingconf.dingtalk.calls import Call

log = logging.getLogger(__name__)


def count_request(call: Call, error: BaseException | None) -> None:
    """Count a request that was sent to DingTalk, and ended in an error or well; raises nothing."""
    outcome = _outcome(error) if error else "success"
    try:
        Stats.incr("dingtalk.calls", tags={"call": call.endpoint.kind, "outcome": outcome})
        if has_dotted_names():
            Stats.incr(f"dingtalk.calls.{call.endpoint.kind}.{outcome.replace('.', '__')}")
        if isinstance(error, ThrottledError):
            Stats.incr("dingtalk.throttled")
        if call.endpoint is ACCESS_TOKEN and error is None:
            Stats.incr("dingtalk.token_fetches")
    except Exception:  # whatever Airflow or its metrics client raises
        log.debug("A request was not counted", exc_info=True)


@cache  # looking it up takes longer than all the rest
def has_dotted_names() -> bool:
    """Return whether Airflow is to send the names that do without tags."""
    return bool(conf.getboolean("metrics", "legacy_names_on", fallback=True))


def _outcome(error: BaseException) -> str:
    if not isinstance(error, DingTalkError):
        return "interrupted"
    row = find_code(error.code)
    return row.code if row else type(error).__name__
