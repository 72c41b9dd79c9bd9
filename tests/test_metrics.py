"""The metrics: a StatsD server sees what uses up the monthly quota."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from airflow.providers.common.compat.sdk import Stats

from airflow_provider_dingconf.dingtalk.calls import any_call, kind_of
from airflow_provider_dingconf.dingtalk.errors import DingTalkError
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.metrics import has_dotted_names
from airflow_provider_dingconf.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("conn")
QPS = "Forbidden.AccessDenied.QpsLimitForApi"
KICK = "/v1.0/conference/videoConferences/{conference_id}/members/kick"


def start_statsd() -> None:
    """Let Airflow send its metrics as it does when a task's process starts."""
    try:
        from airflow.sdk.observability.metrics import stats_utils
    except ImportError:  # Airflow before 3.2 decides once, when it is imported
        from airflow.metrics.statsd_logger import get_statsd_logger

        type(Stats).factory = get_statsd_logger
        type(Stats).instance = Stats.instance = None
        return
    import inspect

    options = inspect.signature(Stats.initialize).parameters
    factory = stats_utils.get_stats_factory(*([Stats] if "export_legacy_names" not in options else []))
    legacy = {"export_legacy_names": True} if "export_legacy_names" in options else {}
    Stats.initialize(factory=factory, **legacy)


def stop_statsd() -> None:
    """Let Airflow send no metrics, as it does by default."""
    try:
        from airflow.sdk.observability.metrics import stats_utils  # noqa: F401
    except ImportError:
        from airflow.metrics.base_stats_logger import NoStatsLogger

        type(Stats).factory = NoStatsLogger
        type(Stats).instance = Stats.instance = None
    else:
        start_statsd()


class Listener:
    """A StatsD server: it counts the counters that it gets."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setblocking(False)  # what was sent to this machine is there
        self.port = self._socket.getsockname()[1]

    def counted(self, prefix: str = "") -> dict[str, int]:
        """Return the counters of this package since the last look, by name without Airflow's prefix."""
        found: Counter[str] = Counter()
        with suppress(BlockingIOError):
            while True:
                name, _, rest = self._socket.recv(65536).decode().partition(":")
                if name.startswith(f"airflow.dingtalk.{prefix}"):  # else it is one of Airflow's own
                    found[name.removeprefix("airflow.")] += int(rest.removesuffix("|c"))
        return dict(found)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """Return a StatsD server that Airflow sends its metrics to."""
    pytest.importorskip("statsd")
    listener = Listener()
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
        patch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        patch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(listener.port))
        start_statsd()
        yield listener
    stop_statsd()
    listener.close()


def test_a_lock_counts_itself_and_its_token(face: Any, statsd: Listener) -> None:
    face.do("lock_conference", "sandbox-open")
    assert statsd.counted() == {
        "dingtalk.calls": 2,
        "dingtalk.calls.access_token.success": 1,
        "dingtalk.calls.lock.success": 1,
        "dingtalk.token_fetches": 1,
    }
    face.do("unlock_conference", "sandbox-open")
    assert statsd.counted() == {"dingtalk.calls": 1, "dingtalk.calls.unlock.success": 1}


def test_each_attempt_counts_by_its_outcome(face: Any, statsd: Listener, sandbox: Sandbox) -> None:
    unknown = {"status": 400, "body": {"code": "id-17", "message": "?"}}
    for fault in ({"code": QPS}, {"code": "systemError"}, {"drop": True}, unknown):
        sandbox.fail(Fault(call="lock", times=1, **fault))
        with pytest.raises(DingTalkError):
            face.do("lock_conference", "sandbox-open", hook=face.hook(max_attempts=1))
    face.do("lock_conference", "sandbox-open")
    assert statsd.counted("calls.lock") == {
        "dingtalk.calls.lock.Forbidden__AccessDenied__QpsLimitForApi": 1,
        "dingtalk.calls.lock.systemError": 1,
        "dingtalk.calls.lock.connectionLost": 1,
        "dingtalk.calls.lock.RefusedError": 1,  # a code that is not known counts as its class
        "dingtalk.calls.lock.success": 1,
    }


def test_throttles_and_refused_tokens_count(face: Any, statsd: Listener, sandbox: Sandbox) -> None:
    for code in (QPS, "InvalidAuthentication"):
        sandbox.fail(Fault(call="lock", code=code, times=1))
    face.do("lock_conference", "sandbox-open")
    counted = statsd.counted()
    assert (counted["dingtalk.throttled"], counted["dingtalk.token_fetches"]) == (1, 2)
    assert counted["dingtalk.calls"] == len(sandbox.calls) == 5


def test_a_bulk_lock_counts_every_call(face: Any, statsd: Listener, sandbox: Sandbox) -> None:
    meetings = [sandbox.create_conference() for _ in range(9)]
    sandbox.fail(Fault(call="lock", code="systemError", times=2))
    face.do("lock_conferences", [*meetings, "sandbox-ended"])
    assert statsd.counted("calls") == {
        "dingtalk.calls": len(sandbox.calls),
        "dingtalk.calls.access_token.success": 1,
        "dingtalk.calls.lock.success": 9,
        "dingtalk.calls.lock.systemError": 2,
        "dingtalk.calls.lock.confClosed": 1,
    }


def test_polls_and_the_address_of_an_event_stream_count(statsd: Listener, sandbox: Sandbox) -> None:
    sandbox.create_conference(conference_id="m", room_code="1234567890", schedule_conference_id="s")

    async def make() -> None:
        async with DingTalkConferenceHook() as hook:
            client = await hook._aconnect()
            await client.running_of(["m"])
            await client.events_address()
            assert len([one async for one in hook.arunning_conferences()]) == 1
            await hook.aget_conference("m")
            await hook.aget_conference(room_code="1234567890")
            await hook.aget_conference(schedule_conference_id="s")
            for meeting in ("m", "n"):  # counted by the path without the ids
                await hook.acall("POST", KICK, path_params={"conference_id": meeting}, json={})

    asyncio.run(make())
    assert statsd.counted("calls") == {
        "dingtalk.calls": len(sandbox.calls),
        "dingtalk.calls.access_token.success": 1,
        "dingtalk.calls.query_conferences.success": 1,
        "dingtalk.calls.open_stream.success": 1,
        "dingtalk.calls.running_conferences.success": 1,
        "dingtalk.calls.get_conference.success": 1,
        "dingtalk.calls.find_by_room_code.success": 1,
        "dingtalk.calls.find_by_schedule_conference_id.success": 1,
        "dingtalk.calls.POST_conference_videoConferences_members_kick.success": 2,
    }


def test_a_call_that_is_not_sent_does_not_count(face: Any, statsd: Listener, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(code="addressBanned"))
    for _ in range(2):
        with pytest.raises(DingTalkError):
            face.do("lock_conference", "sandbox-open")
    assert statsd.counted() == {
        "dingtalk.calls": 1,
        "dingtalk.calls.access_token.addressBanned": 1,
        "dingtalk.throttled": 1,
    }


def test_a_call_that_is_cancelled_counts(statsd: Listener, sandbox: Sandbox) -> None:
    sandbox.fail(Fault(call="info", delay=9.0))

    async def make() -> None:
        async with DingTalkConferenceHook() as hook:
            reading = asyncio.ensure_future(hook.aget_conference("sandbox-open"))
            while not sandbox.calls_of("info"):
                await asyncio.sleep(0.01)
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading

    asyncio.run(make())
    assert statsd.counted("calls.get") == {"dingtalk.calls.get_conference.interrupted": 1}


def test_the_tags_name_call_and_outcome(
    face: Any, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, request: pytest.FixtureRequest
) -> None:
    counted: list[Any] = []
    monkeypatch.setattr(Stats, "incr", lambda *args, **kwargs: counted.append((args, kwargs)), raising=False)
    monkeypatch.setenv("AIRFLOW__METRICS__LEGACY_NAMES_ON", "False")
    has_dotted_names.cache_clear()
    request.addfinalizer(has_dotted_names.cache_clear)
    sandbox.fail(Fault(call="lock", code=QPS))
    with pytest.raises(DingTalkError):
        face.do("lock_conference", "sandbox-open", hook=face.hook(max_attempts=1))
    assert counted == [
        (("dingtalk.calls",), {"tags": {"call": "access_token", "outcome": "success"}}),
        (("dingtalk.token_fetches",), {}),
        (("dingtalk.calls",), {"tags": {"call": "lock", "outcome": QPS}}),
        (("dingtalk.throttled",), {}),
    ]


def test_a_failure_of_the_metrics_breaks_no_call(
    face: Any, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no Listener")

    monkeypatch.setattr(Stats, "incr", fail, raising=False)
    assert face.do("lock_conference", "sandbox-open")["success"] is True
    assert len(sandbox.calls) == 2


def test_a_name_that_is_too_long_for_the_metrics_stops_no_other_from_counting(
    face: Any, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
) -> None:
    counted: Counter[str] = Counter()

    def incr(name: str, **_: Any) -> None:  # as Airflow 2 with OpenTelemetry
        if len(f"airflow.{name}") > 63:
            raise ValueError(name)
        counted[name] += 1

    monkeypatch.setattr(Stats, "incr", incr, raising=False)
    sandbox.fail(Fault(call="lock", code="Forbidden.AccessDenied.QpsLimitForAppkeyAndApi", times=1))
    face.do("lock_conference", "sandbox-open")
    assert counted["dingtalk.throttled"] == 1


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1.0/conference/orgConferences", "GET_conference_orgConferences"),
        ("/v1.0/conference/videoConferences/{conference_id}", "GET_conference_videoConferences"),
        ("/v1.0/conference/videoConferences/65af8c3f0d/details", "GET_conference_videoConferences_details"),
        ("/v1.0/contact/users/iiXXyzAbCdE/x", "GET_contact_users_x"),
        ("/v1.0/oauth2/ding0c1d/userAccessToken", "GET_userAccessToken"),
        ("/v1.0/im/cid%2F%2FVc7N%3D%3D", "GET_im"),
    ],
)
def test_the_name_of_a_call_has_the_words_of_its_path_and_no_ids(path: str, kind: str) -> None:
    assert kind_of("GET", path) == kind
    call = any_call("GET", "/v1.0/contact/users/{user}", path_params={"user": "manager"})
    assert call.endpoint.kind == "GET_contact_users", "a value of path_params is an id, whatever its letters"
