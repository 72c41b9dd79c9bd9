"""Frames of DingTalk's event stream, and what the events of meetings say."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_dingconf.dingtalk.errors import InvalidInputError, ResponseError
from airflow_provider_dingconf.dingtalk.events import (
    SCENES,
    ConferenceEvent,
    EventFilter,
    FrameError,
    address_from,
    conference_events,
    open_call,
    read_frame,
    reply,
    suite_ticket,
)
from airflow_provider_dingconf.dingtalk.tokens import App

SECRET = "client-secret-of-the-app"
MEETING = "644272f14ba3310a"
WHEN = 1_700_000_000_123
STARTED = {
    "openConfModel": {
        "conferenceId": MEETING, "title": "发布 1.0", "status": 2, "startTime": WHEN, "creatorId": "user1",
        "creatorNick": "一", "roomCode": "1234567890", "externalLinkUrl": "https://meeting.example/1",
        "scheduleConferenceId": "s1", "bizType": "0",
    },
    "statusSeqNum": 7,
    "changeScene": "conference_created",
}  # fmt: skip
MEMBER = {"conferenceId": MEETING, "userId": "u1", "userNick": "A", "host": True, "attendStatus": 1}
JOINED = {
    "openMemberModels": [
        {**MEMBER, "joinTime": WHEN},
        {"conferenceId": MEETING, "userId": "u2"},
        {"conferenceId": "another", "userId": "u3"},
    ],
    "changeScene": "user_join",
}
OF_MEMBERS = {"eventType": "meeting_member_status_change"}


def text(data: Any = None, kind: str = "EVENT", **headers: Any) -> str:
    """Return a text of the stream."""
    always = {"topic": "*", "messageId": "m1", "contentType": "application/json", "time": "1700000000000"}
    event = {"eventType": "meeting_status_change", "eventId": "e1", "eventCorpId": "ding1"}
    event["eventBornTime"] = "1700000000456"
    headers = {**always, **(event if kind == "EVENT" else {}), **headers}
    data = json.dumps({} if data is None else data)
    return json.dumps({"specVersion": "1.0", "type": kind, "headers": headers, "data": data})


def only(data: Any, **headers: Any) -> ConferenceEvent:
    """Return the one event of a meeting in a frame."""
    (event,) = conference_events(read_frame(text(data, **headers)))
    return event


# Opening


def test_a_connection_is_opened_with_the_credentials_and_shows_none() -> None:
    call = open_call(App("dingapp", SECRET))
    request = call.request()
    assert (request.method, request.target) == ("POST", "/v1.0/gateway/connections/open")
    body = json.loads(request.content or b"")
    assert body.pop("ua").startswith("airflow-provider-dingconf/")
    assert body == {
        "clientId": "dingapp",
        "clientSecret": SECRET,
        "subscriptions": [{"type": "EVENT", "topic": "*"}],
    }
    assert SECRET not in repr(call)
    address = address_from({"endpoint": "wss://events.example/connect", "ticket": "a/ticket"})
    assert "ticket" not in repr(address).removeprefix("Address")
    assert address.secrets == ("a/ticket", "a%2Fticket")


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("wss://events.example:443/connect", "wss://events.example:443/connect?ticket=a%2Fb%3D"),
        ("wss://events.example/connect?x=1", "wss://events.example/connect?x=1&ticket=a%2Fb%3D"),
        ("ws://127.0.0.1:9/connect", "ws://127.0.0.1:9/connect?ticket=a%2Fb%3D"),
        ("WSS://events.example/connect#there", "wss://events.example/connect?ticket=a%2Fb%3D"),
    ],
)
def test_the_ticket_is_quoted_into_the_address(endpoint: str, url: str) -> None:
    assert address_from({"endpoint": endpoint, "ticket": "a/b="}).url == url


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"ticket": "t"},
        *({"endpoint": "wss://events.example/connect", "ticket": ticket} for ticket in (None, "", 5)),
        *({"endpoint": endpoint, "ticket": "t"}
          for endpoint in ("ws://events.example/connect", "https://events.example/connect", "wss:///connect",
                           "wss://events.example:99999/connect", ["wss://events.example"])),
    ],
)  # fmt: skip
def test_an_address_that_is_missing_or_not_secure_is_refused(content: Any) -> None:
    with pytest.raises(ResponseError) as raised:
        address_from(content)
    assert raised.value.code == "unreadableAnswer"


# Frames


@pytest.mark.parametrize(
    ("frame", "taken", "data"),
    [
        (text(STARTED), True, '{"status": "SUCCESS"}'),
        (text(STARTED), False, '{"status": "LATER"}'),
        (text({"opaque": "x"}, kind="SYSTEM", topic="ping"), True, '{"opaque": "x"}'),
    ],
    ids=["a taken event", "an event for later", "a ping"],
)
def test_a_message_gets_its_reply(frame: str, taken: bool, data: str) -> None:
    assert json.loads(reply(read_frame(frame), taken=taken)) == {
        "code": 200,
        "headers": {"messageId": "m1", "contentType": "application/json"},
        "message": "OK",
        "data": data,
    }


def test_a_goodbye_differs_from_a_ping() -> None:
    frames = [read_frame(text(kind="SYSTEM", topic=topic)) for topic in ("ping", "disconnect")]
    assert [frame.says_goodbye for frame in frames] == [False, True]
    assert not any(frame.is_event for frame in frames)


@pytest.mark.parametrize(
    "wrong",
    ["", "no json", "[]", "5", "{}", '{"headers": 5}', '{"headers": {}}', '{"headers": {"messageId": ""}}'],
)
def test_a_malformed_message_is_refused(wrong: str) -> None:
    with pytest.raises(FrameError):
        read_frame(wrong)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.text(st.sampled_from("a\0\ud83d\udd12")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)  # fmt: skip


@given(st.text() | _JSON.map(json.dumps))
def test_any_message_is_read_or_refused(anything: str) -> None:
    try:
        frame = read_frame(anything)
    except FrameError:
        return
    assert conference_events(frame) == []


@given(
    kind=st.sampled_from(["meeting_status_change", "meeting_member_status_change"]),
    model=st.dictionaries(st.sampled_from([*STARTED["openConfModel"], "endTime"]), _JSON),  # type: ignore[misc]
    rest=st.dictionaries(st.sampled_from(["statusSeqNum", "changeScene"]), _JSON),
    born=_JSON,
)
def test_the_payload_of_any_event_is_json(kind: str, model: Any, rest: Any, born: Any) -> None:
    data = {"openConfModel": model, "openMemberModels": [model], **rest}
    frame = read_frame(text(data, eventType=kind, eventBornTime=born))
    for event in conference_events(frame):
        assert json.loads(json.dumps(event.payload(), allow_nan=False)) == event.payload()
        assert b"\\u0000" not in json.dumps(event.payload(), ensure_ascii=False).encode().replace(rb"\\", b"")
        numbers = [event.sequence, *(member["attend_status"] for member in event.members)]
        assert all(-(2**63) <= number < 2**63 for number in numbers if number is not None)
        assert not EventFilter(scenes=tuple(SCENES)).wants(event) or event.scene in SCENES


# Events of meetings


def test_a_meeting_that_started_says_which_and_when() -> None:
    event = only(STARTED)
    assert event.start_time == datetime.fromtimestamp(WHEN / 1000, timezone.utc)
    assert event.payload() == {
        "event_id": "e1", "event_type": "meeting_status_change", "scene": "conference_created",
        "conference_id": MEETING, "corp_id": "ding1", "sequence": 7,
        "happened_at": "2023-11-14T22:13:20.456+00:00", "title": "发布 1.0", "status": "started",
        "start_time": "2023-11-14T22:13:20.123+00:00", "end_time": None, "creator_id": "user1",
        "creator_nick": "一", "room_code": "1234567890", "join_url": "https://meeting.example/1",
        "schedule_conference_id": "s1", "biz_type": "0", "members": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("number", "status"), [(0, "not_started"), (1, "ended"), ("2", "started"), (9, None), (True, None)]
)
def test_a_status_is_named(number: object, status: str | None) -> None:
    assert only({"openConfModel": {"conferenceId": "c", "status": number}}).status == status


def test_members_of_several_meetings_are_an_event_for_each() -> None:
    frame = read_frame(text(JOINED, **OF_MEMBERS))
    one, other = conference_events(frame)
    assert (one.conference_id, other.conference_id) == (MEETING, "another")
    assert one.scene == "user_join"
    assert one.title is None
    assert [member["user_id"] for member in one.members] == ["u1", "u2"]
    assert one.payload()["members"][0] == {
        "user_id": "u1", "nick": "A", "host": True, "co_host": False, "attend_status": 1,
        "join_time": "2023-11-14T22:13:20.123+00:00",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (STARTED, {"eventType": "chat_update_title"}),
        (STARTED, {"eventId": None}),
        ({}, {}),
        ({"openConfModel": []}, {}),
        ({"openConfModel": {"title": "no id"}}, {}),
        ({"openConfModel": {"conferenceId": "a/../b"}}, {}),
        ({"openMemberModels": 5}, OF_MEMBERS),
        ([], {}),
    ],
)
def test_an_event_that_names_no_meeting_is_ignored(data: Any, headers: Any) -> None:
    assert conference_events(read_frame(text(data, **headers))) == []


@pytest.mark.parametrize(
    ("data", "kind", "ticket"),
    [
        ({"suiteTicket": "t1"}, "suite_ticket", "t1"),
        ({"suiteTicket": "t1"}, "something", None),
        ({"suiteTicket": ""}, "suite_ticket", None),
        ({"suiteTicket": "a\nb"}, "suite_ticket", None),
        ({}, "suite_ticket", None),
    ],
)
def test_a_suite_ticket_is_found_in_its_event_alone(data: Any, kind: str, ticket: str | None) -> None:
    assert suite_ticket(read_frame(text(data, eventType=kind))) == ticket


# Filters


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"title_pattern": "^发布"}, True),
        ({"title_pattern": r"1\.0$"}, True),
        ({"title_pattern": "^1"}, False),
        ({"creator_id": "user1"}, True),
        ({"creator_id": "user"}, False),
        ({"title_pattern": "^发布", "creator_id": "user2"}, False),
        ({"scenes": ("conference_closed",)}, False),
        ({"scenes": ("conference_closed", "conference_created")}, True),
    ],
)
def test_a_filter_picks_by_scene_title_and_creator(wanted: Any, fits: bool) -> None:
    assert EventFilter(**wanted).wants(only(STARTED)) is fits
    bare = {"openConfModel": {"conferenceId": "c"}, "changeScene": "conference_created"}
    assert EventFilter(**wanted).wants(only(bare)) is (fits and wanted.keys() <= {"scenes"})


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"scenes": ("conference_create",)}, "did you mean 'conference_created'?"),
        ({"scenes": ("xyz",)}, "known are conference_created"),
        ({"scenes": ()}, "none is given"),
        ({"title_pattern": "("}, "not a regular expression"),
        ({"creator_id": ""}, "creator_id: it is empty"),
        ({"scenes": 5}, "scenes: expected a list of strings, got 5"),
        ({"scenes": None}, "scenes: expected a list of strings, got None"),
        ({"scenes": {"user_join": 1}}, "scenes: expected a list of strings"),
        ({"scenes": ["user_join", 5]}, "scenes: 5 is unknown"),
        ({"scenes": [["user_join"]]}, "is unknown"),
        ({"scenes": ("user_join",), "title_pattern": "a"}, "does not hold the meeting's title"),
        ({"scenes": ("user_join",), "creator_id": "a"}, "creator_id"),
    ],
)
def test_an_invalid_filter_is_refused(wanted: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(says)):
        EventFilter(**wanted)


def test_filters_of_the_same_scenes_are_equal_whatever_their_order_and_form() -> None:
    first = EventFilter(scenes=["user_leave", "user_join", "user_leave"])
    for same in (("user_join", "user_leave"), {"user_leave", "user_join"}, iter(["user_join", "user_leave"])):
        assert EventFilter(scenes=same) == first  # type: ignore[arg-type]
    assert first.scenes == ("user_join", "user_leave")
    assert EventFilter(scenes="user_join") == EventFilter(scenes=("user_join",))
    assert hash(EventFilter(scenes="user_join")) == hash(EventFilter(scenes=["user_join"]))
