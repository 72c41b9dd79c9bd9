"""Metrics of the requests to DingTalk, through Airflow's ``Stats``.

``docs/how-to/metrics.md`` describes each metric and its tags.
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
    """Count a request to DingTalk, and the error that it ended in, if any; raises nothing."""
    outcome = _outcome(error) if error else "success"
    try:
        Stats.incr("dingtalk.calls", tags={"call": call.endpoint.kind, "outcome": outcome})
        if isinstance(error, ThrottledError):
            Stats.incr("dingtalk.throttled")
        if call.endpoint is ACCESS_TOKEN and error is None:
            Stats.incr("dingtalk.token_fetches")
        if has_dotted_names():  # last: some names are too long for OpenTelemetry on Airflow 2, which raises
            Stats.incr(f"dingtalk.calls.{call.endpoint.kind}.{outcome.replace('.', '__')}")
    except Exception:  # whatever Airflow or its metrics client raises
        log.debug("A request was not counted", exc_info=True)


@cache  # the look-up takes longer than all the rest
def has_dotted_names() -> bool:
    """Return whether Airflow sends the names that need no tags."""
    return bool(conf.getboolean("metrics", "legacy_names_on", fallback=True))


def _outcome(error: BaseException) -> str:
    if not isinstance(error, DingTalkError):
        return "interrupted"
    row = find_code(error.code)
    return row.code if row else type(error).__name__
