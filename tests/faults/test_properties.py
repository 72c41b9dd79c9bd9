"""What holds for any text, any connection, any response, and any sequence of locks, unlocks and faults."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest

hypothesis = pytest.importorskip("hypothesis")

from airflow.providers.common.compat.sdk import Connection  # noqa: E402
from hypothesis import HealthCheck, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.stateful import (  # noqa: E402
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from airflow_provider_dingconf.client import token_cache  # noqa: E402
from airflow_provider_dingconf.client.settings import read_connection  # noqa: E402
from airflow_provider_dingconf.dingtalk.calls import any_call  # noqa: E402
from airflow_provider_dingconf.dingtalk.errors import (  # noqa: E402
    AccessTokenError,
    ConferenceClosedError,
    ConnectionLostError,
    DingTalkError,
    InvalidConferenceIdError,
    InvalidConnectionError,
    InvalidInputError,
    ParameterError,
    PermissionDeniedError,
    ServerError,
    ThrottledError,
)
from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE  # noqa: E402
from airflow_provider_dingconf.hooks import DingTalkConferenceHook  # noqa: E402
from airflow_provider_dingconf.sandbox import Fault, Sandbox  # noqa: E402

from .fault_proxy import Fault as Breakage  # noqa: E402
from .fault_proxy import FaultProxy  # noqa: E402

BOUNDED = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MANY = settings(BOUNDED, max_examples=800)
SECONDS = 30.0
"""More than any call here may take, with ``max_seconds=2``, on a busy machine."""

SECRETS = ("s3cret-of-the-app", "ticket-of-the-suite", "token-fetched-elsewhere", "word-of-the-proxy")
SECRET, TICKET, TOKEN, PROXY_WORD = SECRETS


def lock(awaited: bool, meeting: str) -> Any:
    """Lock a meeting by a new hook, or its twin."""
    hook = DingTalkConferenceHook(max_attempts=1, max_seconds=2)
    with closing(hook):
        return asyncio.run(hook.alock_conference(meeting)) if awaited else hook.lock_conference(meeting)


@contextmanager
def connection(fields: dict[str, Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", json.dumps(fields))
        yield


def all_of(error: BaseException) -> str:
    """Return all that an error shows of itself and of what it wraps."""
    return f"{error} {error!r} {vars(error)} {error.__cause__!r}"


# Any text as a conference id

IDS = (
    st.text(max_size=40)
    | st.text(alphabet="abcXYZ019-._~!$&'()*+,;=:@%/?#\\ \t\r\n\0", max_size=40)
    | st.text(alphabet="a", min_size=250, max_size=260)
    | st.sampled_from(["a/../b", "..", ".", "%2e%2e", "a?b", "a#b", "//", "\u202e", "ｌｏｃｋ", "\ud800"])
)


@given(conference_id=IDS, awaited=st.booleans())
@BOUNDED
def test_any_text_is_sent_as_one_segment_or_refused_before_a_call(
    conference_id: str, awaited: bool, behind: Sandbox
) -> None:
    behind.clear()
    with connection(behind.connection("static_token")):
        try:
            lock(awaited, conference_id)
        except InvalidConferenceIdError as error:
            assert behind.calls == []
            assert str(error).isprintable()
            return
        except ServerError:  # some ids are reserved; none is likely to be found
            assert conference_id.startswith("sandbox-")
        except ParameterError:
            pass
    (made,) = behind.calls
    assert made.path == f"/v1.0/conference/videoConferences/{conference_id}/lock"
    assert made.json() == {"action": "lock"}


@given(method=st.text(max_size=8), path=st.text(max_size=40) | IDS.map("/v1.0/{}".format))
@MANY
def test_any_method_and_path_are_valid_or_refused(method: str, path: str) -> None:
    try:
        request = any_call(method, path).request("token")
    except InvalidInputError as error:
        assert str(error).isprintable()
    else:
        assert request.target == path
        assert path.isascii()


# Any connection

WORDS = st.text(max_size=20) | st.sampled_from(
    ["true", "no", "1", "0", "-1", "1e400", "nan", "[1,2]", "{", '{"https": 1}', "/", "/dev/null", "/tmp", "\0"]
)  # fmt: skip
TEXTS = WORDS | st.sampled_from(SECRETS)
PROXIES = st.sampled_from(
    [f"http://user:{PROXY_WORD}@127.0.0.1:1", "http://", "://", "ftp://127.0.0.1:1", "socks5://127.0.0.1:1",
     "http://[::1", "http://127.0.0.1:99999", "http://a b", "http://127.0.0.1:1/\n", "127.0.0.1:1"]
)  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 1e308, 5e-324])
    | st.floats()
    | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
EXTRAS = st.dictionaries(
    st.sampled_from(sorted(CONNECTION_TYPE["conn-fields"])),
    JSON | TEXTS | st.dictionaries(st.sampled_from(["http", "https", "all"]), PROXIES, max_size=2),
    max_size=5,
)
APP = {"login": "app", "password": SECRET}
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "host": TEXTS
        | st.sampled_from(["http://127.0.0.1", f"https://u:{SECRET}@h", f"h/?t={TOKEN}", "[::1]"]),
        "schema": WORDS | st.sampled_from(["http", "https"]),
        "port": st.none() | st.integers(-1, 70_000),
        "login": TEXTS,
        "password": st.just(SECRET) | TEXTS,
    },
)
ANY_EXTRA = (
    (EXTRAS | JSON | st.dictionaries(st.text(max_size=12), JSON, max_size=4)).map(json.dumps)
    | st.text(max_size=60)
    | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1"))
)


@given(fields=FIELDS | ANY_EXTRA.map(lambda extra: APP | {"extra": extra}))
@example(fields=APP | {"extra": '{"timeout": 1e300}'})
@example(fields=APP | {"extra": json.dumps({"timeout": 10**400})})
@example(fields=APP | {"extra": json.dumps({"timeout": [1, -(10**400)]})})
@example(fields=APP | {"extra": json.dumps({"timeout": "[" * 100_000, "proxies": '{"a":' * 100_000})})
@example(fields=APP | {"extra": "[" * 100_000})
@example(fields=APP | {"extra": '{"a":' * 100_000})
@example(fields=APP | {"extra": "1" * 10_000})
@example(fields=APP | {"extra": json.dumps({"corp_id": SECRET})})
@MANY
def test_any_fields_are_settings_or_a_clear_error(fields: dict[str, Any]) -> None:
    try:
        conn = Connection(conn_id="c", conn_type="dingtalk", **fields)
    except (ValueError, RecursionError):
        return  # Airflow refuses it
    try:
        read = read_connection(conn, "dingtalk_default")
    except InvalidConnectionError as error:
        assert str(error).startswith("connection 'dingtalk_default', ")
        assert str(error).isprintable()
        assert [secret for secret in SECRETS if secret in all_of(error)] == []
    else:
        assert read.base_url.startswith(("https://", "http://127.", "http://localhost", "http://[::1]"))
        # A secret may stand where the Client ID, the host or the organisation is expected.
        if "extra" in fields and not (read.app and read.app.corp_id in SECRETS):
            assert SECRET not in repr(read)
            assert TOKEN not in repr(read)


@given(extra=EXTRAS, awaited=st.booleans())
@example(extra={"access_token": TOKEN, "timeout": 1e300}, awaited=False)
@example(extra={"access_token": TOKEN, "timeout": 5e-324}, awaited=False)
@example(extra={"access_token": TOKEN, "timeout": [1e300, 5e-324]}, awaited=True)
@example(extra={"access_token": TOKEN, "proxies": {"http": "socks5://127.0.0.1:1"}}, awaited=True)
@example(extra={"access_token": TOKEN, "proxies": {"http": "http://[::1"}}, awaited=False)
@example(extra={"access_token": TOKEN, "proxies": {"http": "http://127.0.0.1:99999"}}, awaited=True)
@BOUNDED
def test_a_call_over_any_connection_ends_in_time_and_as_documented(
    extra: dict[str, Any], awaited: bool, behind: Sandbox
) -> None:
    token_cache.forget()
    fields = behind.connection(password=SECRET) | {"extra": extra}
    began = time.monotonic()
    with connection(fields):
        try:
            lock(awaited, "meeting")
        except DingTalkError as error:
            assert [secret for secret in SECRETS if secret in all_of(error)] == []
    assert time.monotonic() - began < SECONDS


# Any bytes as a response

HEADER_NAMES = st.sampled_from(
    ["Content-Type", "Content-Length", "Content-Encoding", "Transfer-Encoding", "Retry-After", "Location",
     "Connection", "Set-Cookie", "x-acs-request-id", "Upgrade", "Trailer", "X"]
)  # fmt: skip
HEADER_VALUES = st.sampled_from(
    ["application/json", "gzip", "deflate", "br", "chunked", "identity", "0", "1", "-1", "99999999999999999999",
     "close", "keep-alive", "a=b; Domain=127.0.0.1", "http://127.0.0.1:1/", "text/html", "websocket", *SECRETS]
) | st.text(max_size=20)  # fmt: skip
BODIES = (
    st.binary(max_size=200)
    | JSON.map(json.dumps).map(str.encode)
    | st.sampled_from([b'{"success":true}', *(f'{{"message":"{secret}"}}'.encode() for secret in SECRETS)])
    | st.sampled_from(SECRETS).map(lambda secret: f'{{"code":"{secret}","requestid":"{secret}"}}'.encode())
)


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """Return something like a response."""
    body = draw(BODIES)
    if draw(st.booleans()):
        body = gzip.compress(body, 1)
    headers = draw(st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=5))
    if draw(st.booleans()):
        headers.append(("Content-Length", str(len(body))))
    status = draw(st.integers(100, 599) | st.sampled_from([0, 99, 600, 999, 1000, -1, 200, 200]))
    lines = [f"HTTP/1.1 {status} {draw(st.sampled_from(['OK', '', *SECRETS]))}", *map(": ".join, headers)]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body


RAW = st.binary(max_size=300) | st.builds(
    bytes.__add__, st.just(b"HTTP/1.1 200 OK\r\n"), st.binary(max_size=200)
)


@pytest.mark.parametrize("kind", ["lock", "token"])
@given(response=responses() | RAW, awaited=st.booleans(), kept=st.booleans())
@settings(BOUNDED, max_examples=100)
def test_any_response_is_a_result_or_a_documented_error_and_shows_no_secret(
    kind: str, response: bytes, awaited: bool, kept: bool, layer: FaultProxy, behind: Sandbox
) -> None:
    token_cache.forget()
    breakage = Breakage((response,), ends="keep" if kept else "close")
    route = layer.route({kind: itertools.repeat(breakage)})
    extra = {"timeout": 0.2, "token_cache": False} | ({"access_token": TOKEN} if kind == "lock" else {})
    fields = {**APP, "conn_type": "dingtalk", "host": route.url, "extra": extra}
    began = time.monotonic()
    with connection(fields):
        try:
            result = lock(awaited, "meeting")
        except DingTalkError as error:
            assert (TOKEN if kind == "lock" else SECRET) not in all_of(error)
            assert str(error).isprintable()
            assert error.retry_after is None or error.retry_after >= 0
        else:
            assert kind == "lock"
            assert b"success" in response or b"gzip" in response or b"deflate" in response
            assert result["success"] is True
    assert time.monotonic() - began < SECONDS
    assert route.count(kind) in {0, 1, 2}


# Any sequence of calls

ERRORS: dict[str | None, type[DingTalkError]] = {
    None: ConnectionLostError,
    "systemError": ServerError,
    "gateway": ServerError,
    "noPermission": PermissionDeniedError,
    "InvalidAuthentication": AccessTokenError,
    "systemBusy": ThrottledError,
}
FAULTS = [
    Fault(call="lock", drop=True),
    Fault(call="lock", drop=True, after=True),
    Fault(call="lock", code="noPermission"),
    Fault(call="lock", code="gateway", after=True),
    Fault(call="lock", code="InvalidAuthentication"),
    Fault(call="unlock", drop=True, after=True),
    Fault(call="unlock", code="systemError"),
    Fault(call="any", code="systemBusy"),
    Fault(call="token", drop=True),
    Fault(call="token", code="systemError"),
]
Ending = type[BaseException] | None
"""The class of the exception in which a call ends; None if it succeeds."""


class Meetings(RuleBasedStateMachine):
    """Locks, unlocks, blocks, faults and refused tokens, against a model of their results.

    The model knows of each meeting whether it is locked and whether it has ended, whether the hook's access token
    is good, and how many calls DingTalk received.
    """

    meetings = Bundle("meetings")

    def __init__(self) -> None:
        super().__init__()
        token_cache.forget()
        self.sandbox = Sandbox().__enter__()
        self.patch = pytest.MonkeyPatch()
        conn = self.sandbox.connection_json(extra={"token_cache": False})
        self.patch.setenv("AIRFLOW_CONN_DINGTALK_DEFAULT", conn)
        self.hook = DingTalkConferenceHook(max_attempts=1)
        self.locked: dict[str, bool] = {}
        self.ended: set[str] = set()
        self.has_token = self.token_good = False
        self.fault: Fault | None = None
        self.calls = self.tokens = 0

    def teardown(self) -> None:
        self.hook.close()
        self.patch.undo()
        self.sandbox.__exit__(None, None, None)
        token_cache.forget()

    # What happens around the calls

    @initialize(target=meetings)
    def begin(self) -> str:
        return self.create()

    @rule(target=meetings)
    def create(self) -> str:
        meeting = self.sandbox.create_conference()
        self.locked[meeting] = False
        return meeting

    @rule(meeting=meetings)
    def end(self, meeting: str) -> None:
        self.sandbox.end(meeting)
        self.ended.add(meeting)

    @rule(how=st.sampled_from(["expire_tokens", "revoke_tokens"]))
    def spoil_tokens(self, how: str) -> None:
        getattr(self.sandbox, how)()
        self.token_good = False

    @precondition(lambda self: self.fault is None)
    @rule(fault=st.sampled_from(FAULTS))
    def fail(self, fault: Fault) -> None:
        """Let something go wrong once."""
        self.fault = replace(fault, times=1)
        self.sandbox.fail(self.fault)

    # The model of a call

    def take(self, name: str) -> Fault | None:
        """Return what goes wrong with a call that is made now."""
        if self.fault and self.fault.call in {"any", name}:
            taken, self.fault = self.fault, None
            return taken
        return None

    def expect(self, action: str, meeting: str) -> Ending:
        """Bring the model up to date for one call, and return how the call ends."""
        error: Ending = None
        for fresh in (False, True):
            if not self.has_token or fresh:
                self.tokens += 1
                if fault := self.take("token"):
                    return ERRORS[fault.code]
                self.has_token = self.token_good = True
            self.calls += 1
            error = self.expect_response(action, meeting)
            if error is not AccessTokenError:
                break
        return error

    def expect_response(self, action: str, meeting: str) -> Ending:
        fault = self.take(action)
        if fault and not fault.after:
            return ERRORS[fault.code]
        effect: Ending = None
        if not self.token_good:
            effect = AccessTokenError
        elif meeting in self.ended:
            effect = ConferenceClosedError
        else:
            self.locked[meeting] = action == "lock"
        return ERRORS[fault.code] if fault else effect

    def expect_block(self, meeting: str, fails: bool, inside: list[bool]) -> Ending:
        in_token_call = self.fault is not None and self.fault.call == "token"
        error = self.expect("lock", meeting)
        if error:
            assert not inside
            if error in {ConnectionLostError, ServerError} and not in_token_call:
                assert self.expect("unlock", meeting) in {None, ConferenceClosedError}
                assert not self.locked[meeting] or meeting in self.ended
            return error
        assert inside == [True]
        error = self.expect("unlock", meeting)
        if error and error is not ConferenceClosedError:
            return error
        return ZeroDivisionError if fails else None

    # The calls

    @rule(meeting=meetings, action=st.sampled_from(["lock", "unlock"]), awaited=st.booleans())
    def call(self, meeting: str, action: str, awaited: bool) -> None:
        ending: Ending = None
        try:
            if awaited:
                asyncio.run(getattr(self.hook, f"a{action}_conference")(meeting))
            else:
                getattr(self.hook, f"{action}_conference")(meeting)
        except DingTalkError as error:
            assert Sandbox.client_secret not in all_of(error)
            ending = type(error)
        assert ending is self.expect(action, meeting)

    @rule(meeting=meetings, awaited=st.booleans(), fails=st.booleans())
    def work_in_a_block(self, meeting: str, awaited: bool, fails: bool) -> None:
        inside: list[bool] = []

        def work() -> None:
            inside.append(self.sandbox.conference(meeting).locked)
            if fails:
                raise ZeroDivisionError

        async def block() -> None:
            async with self.hook.alocked(meeting):
                work()

        ending: Ending = None
        try:
            if awaited:
                asyncio.run(block())
            else:
                with self.hook.locked(meeting):
                    work()
        except (DingTalkError, ZeroDivisionError) as error:
            ending = type(error)
        assert ending is self.expect_block(meeting, fails, inside)

    @invariant()
    def meetings_and_calls_are_as_in_the_model(self) -> None:
        assert {meeting: self.sandbox.conference(meeting).locked for meeting in self.locked} == self.locked
        made = len(self.sandbox.calls_of("lock", "unlock")), len(self.sandbox.calls_of("token"))
        assert made == (self.calls, self.tokens)


def test_any_sequence_of_calls_and_faults_is_as_the_model_says() -> None:
    run_state_machine_as_test(Meetings, settings=settings(BOUNDED, max_examples=40, stateful_step_count=25))
