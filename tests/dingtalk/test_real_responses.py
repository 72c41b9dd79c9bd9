"""Responses as DingTalk sent or documents them: each is the error that it should be.

``real_responses.json`` names the source of each, and whether it was recorded or is documented. Request ids are
replaced.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_dingconf.dingtalk.calls import Response, any_call, lock_call
from airflow_provider_dingconf.dingtalk.errors import DingTalkError
from airflow_provider_dingconf.dingtalk.responses import read_response
from airflow_provider_dingconf.dingtalk.tokens import App

RESPONSES = json.loads((Path(__file__).parent / "real_responses.json").read_text())
CALLS = {
    "lock": lock_call("conference", "lock"),
    "token": App("id", "secret").token_call(),
    "any": any_call("GET", "/v1.0/contact/users/me"),
}


def test_the_corpus_is_large_enough_and_names_its_sources() -> None:
    assert len(RESPONSES) >= 25
    assert all(one["source"] and one["kind"] in {"recorded", "documented"} for one in RESPONSES)


@pytest.mark.parametrize("real", RESPONSES, ids=lambda one: f"{one['call']}-{one['status']}-{one['code']}")
def test_a_real_response_is_the_error_it_stands_for(real: dict[str, Any]) -> None:
    body = real["body"] if isinstance(real["body"], str) else json.dumps(real["body"])
    response = Response(real["status"], real.get("headers", {}), body.encode())
    with pytest.raises(DingTalkError) as caught:
        read_response(CALLS[real["call"]], response, real.get("now", 1_700_000_000))
    error = caught.value
    assert (type(error).__name__, error.code, error.outcome.value, error.scope.value) == (
        real["class"],
        real["code"],
        real["outcome"],
        real["scope"],
    )
    assert error.retry_after == real.get("retry_after")
    assert error.repeat is (real["outcome"] == "retry" and real["class"] != "AddressBannedError")
    assert real.get("says", "") in str(error)
