"""What holds for any response of a server."""

from __future__ import annotations

import gzip
import json

import pytest

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from airflow_provider_dingconf.dingtalk.calls import Response, any_call, lock_call  # noqa: E402
from airflow_provider_dingconf.dingtalk.conferences import Reference  # noqa: E402
from airflow_provider_dingconf.dingtalk.error_codes import ERRORS  # noqa: E402
from airflow_provider_dingconf.dingtalk.errors import DingTalkError  # noqa: E402
from airflow_provider_dingconf.dingtalk.responses import CallResult, parse_retry_after, read_response  # noqa: E402
from airflow_provider_dingconf.dingtalk.tokens import App, read_token  # noqa: E402

# A slow machine is no failure, and nothing of a run is kept.
settings.register_profile("dingconf", deadline=None, database=None)
settings.load_profile("dingconf")

CALLS = st.sampled_from(
    [
        lock_call(Reference("conference_id", "c"), "lock"),
        any_call("GET", "/v1.0/x"),
        App("id", "s3cret").token_call(),
    ]
)
NAMES = st.sampled_from(
    ["success", "code", "errcode", "message", "errmsg", "requestid", "uuid", "status", "wait", "punish",
     "accessToken", "expireIn"]
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**400)
    | st.floats()
    | st.text(max_size=40)
    | st.sampled_from([*ERRORS, 1111])
)
OBJECTS = st.dictionaries(NAMES | st.text(max_size=5), SCALARS | st.lists(SCALARS, max_size=3), max_size=6)
BODIES = st.binary(max_size=200) | OBJECTS.map(lambda body: json.dumps(body).encode())
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-encoding": st.sampled_from(["gzip", "deflate", "br", "gzip, gzip", ""]),
        "retry-after": st.text(max_size=40) | st.integers().map(str),
        "location": st.text(max_size=40),
        "x-acs-request-id": st.text(max_size=40),
    },
)


@given(call=CALLS, status=st.integers(100, 999), headers=HEADERS, body=BODIES, packed=st.booleans())
def test_any_response_is_a_good_one_or_a_dingtalk_error(
    call: object, status: int, headers: dict[str, str], body: bytes, packed: bool
) -> None:
    response = Response(status, headers, gzip.compress(body, 1) if packed else body)
    try:
        good = read_response(call, response, 1e9, ["s3cret"])  # type: ignore[arg-type]
        assert isinstance(good, CallResult)
        assert 200 <= status < 300 or status < 200
        if call.endpoint.with_credentials:  # type: ignore[attr-defined]
            read_token(good.content, 1e9)
    except DingTalkError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 2_000
        assert error.retry_after is None or error.retry_after >= 0


WORDS = st.sampled_from(["Mon,", "Mon", "01", "1", "Jan", "2024", "99999", "00:00:00", "0:0", "1.2.3", "GMT", "+0800",
                         "-0000", ",", "-", "+", ":", "12-Jan-24"])  # fmt: skip


@given(
    st.text(max_size=50)
    | st.lists(WORDS, max_size=7).map(" ".join)
    | st.lists(WORDS, max_size=7).map("".join)
)
def test_any_retry_after_is_seconds_or_nothing(value: str) -> None:
    seconds = parse_retry_after(value, 1e9)
    assert seconds is None or 0 <= seconds < 1e13
