"""The organisation's quota, and DingTalk's rate limit."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from airflow_provider_dingconf.sandbox import Sandbox

from .conftest import CONFERENCES, Caller, Clock, code

QUOTA = (403, "Forbidden.AccessDenied.ApiCountLimitForOrg")
RATE = (403, "Forbidden.AccessDenied.QpsLimitForAppkeyAndApi")


def test_once_the_quota_is_used_up_every_call_is_refused() -> None:
    with Sandbox(quota=2) as sandbox, Caller(sandbox) as caller:
        assert [caller.lock("sandbox-open").status_code for _ in range(2)] == [200, 200]
        assert code(caller.lock("sandbox-open", "unlock")) == QUOTA
        assert code(caller.call("POST", "/v1.0/oauth2/accessToken", {"appKey": "x"})) == QUOTA
        assert code(caller.call("GET", "/v1.0/no/such/call"))[0] == 404
        assert caller.control("GET", "/calls").status_code == 200
        assert not sandbox.conference("sandbox-open").refused


def test_more_calls_a_second_than_allowed_are_refused_until_the_named_moment(clock: Clock) -> None:
    with Sandbox(calls_per_second=3, clock=clock) as sandbox, Caller(sandbox) as caller:
        before = datetime.now(timezone.utc)
        answers = [caller.lock("sandbox-open", action) for action in ("lock", "unlock", "lock", "lock")]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 403]
        assert code(answers[3]) == RATE
        found = re.search(
            "限制将在 ([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}) 结束", answers[3].json()["message"]
        )
        assert found
        end = datetime.fromisoformat(f"{found[1]}+08:00")
        assert timedelta(seconds=0.9) < end - before < timedelta(seconds=60)
        assert caller.call("GET", f"{CONFERENCES}/sandbox-open").status_code == 200, "another API"
        clock.now += 0.9
        assert code(caller.lock("sandbox-open")) == RATE
        clock.now += 0.1
        assert caller.lock("sandbox-open").status_code == 200


def test_another_app_has_a_rate_of_its_own(clock: Clock) -> None:
    with Sandbox(calls_per_second=1, clock=clock) as sandbox, Caller(sandbox) as caller:
        app = {"appKey": sandbox.client_id, "appSecret": sandbox.client_secret}
        suite = {
            "client_id": sandbox.suite_key,
            "client_secret": sandbox.suite_secret,
            "grant_type": "client_credentials",
        }
        path = f"/v1.0/oauth2/{sandbox.corp_id}/token"
        internal = {**suite, "client_id": sandbox.client_id, "client_secret": sandbox.client_secret}
        assert caller.call("POST", path, suite).status_code == 200
        assert caller.call("POST", path, internal).status_code == 200
        assert code(caller.call("POST", path, internal)) == RATE
        assert caller.call("POST", "/v1.0/oauth2/accessToken", app).status_code == 200


def test_no_limit_by_default(caller: Caller) -> None:
    assert {caller.lock("sandbox-open").status_code for _ in range(60)} == {200}
