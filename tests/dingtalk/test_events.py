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
STARTED = {
    "openConfModel": {
        "conferenceId": MEETING,
        "title": "发布 1.0",
        "status": 2,
        "startTime": 1_700_000_000_123,
        "creatorId": "user1",
        "creatorNick": "一",
        "roomCode": "1234567890",
        "externalLinkUrl": "https://meeting.example/1",
        "scheduleConferenceId": "s1",
        "bizType": "0",
    },
    "statusSeqNum": 7,
    "changeScene": "conference_created",
}
JOINED = {
    "openMemberModels": [
        {
            "conferenceId": MEETING,
            "userId": "u1",
            "userNick": "A",
            "host": True,
            "attendStatus": 1,
            "joinTime": 1_700_000_000_000,
        },
        {"conferenceId": MEETING, "userId": "u2"},
        {"conferenceId": "another", "userId": "u3"},
    ],
    "changeScene": "user_join",
}


def text(data: Any = None, kind: str = "EVENT", **headers: Any) -> str:
    """Return a text of the stream."""
    always = {"topic": "*", "messageId": "m1", "contentType": "application/json", "time": "1700000000000"}
    event = {
        "eventType": "meeting_status_change",
        "eventId": "e1",
        "eventCorpId": "ding1",
        "eventBornTime": "1700000000456",
    }
    frame = {
        "specVersion": "1.0",
        "type": kind,
        "headers": {**always, **(event if kind == "EVENT" else {}), **headers},
        "data": json.dumps({} if data is None else data),
    }
    return json.dumps(frame)


def only(data: Any, **headers: Any) -> ConferenceEvent:
    """Return the one event of a meeting in a frame."""
    (event,) = conference_events(read_frame(text(data, **headers)))
    return event


# Opening


def test_a_connection_is_asked_for_with_the_credentials_and_nothing_of_this_machine() -> None:
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


def test_no_secret_is_in_what_is_printed_of_a_connection() -> None:
    address = address_from({"endpoint": "wss://events.example/connect", "ticket": "a/ticket"})
    assert "ticket" not in repr(address).removeprefix("Address")
    assert SECRET not in repr(open_call(App("dingapp", SECRET)))
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
        {"endpoint": "wss://events.example/connect"},
        {"endpoint": "wss://events.example/connect", "ticket": ""},
        {"endpoint": "wss://events.example/connect", "ticket": 5},
        {"ticket": "t"},
        {"endpoint": "ws://events.example/connect", "ticket": "t"},
        {"endpoint": "https://events.example/connect", "ticket": "t"},
        {"endpoint": "wss:///connect", "ticket": "t"},
        {"endpoint": "wss://events.example:99999/connect", "ticket": "t"},
        {"endpoint": ["wss://events.example"], "ticket": "t"},
    ],
)
def test_an_address_that_is_not_secure_or_no_address_is_refused(content: Any) -> None:
    with pytest.raises(ResponseError) as raised:
        address_from(content)
    assert raised.value.code == "unreadableAnswer"


# Frames


def test_an_event_is_answered_with_success_or_later() -> None:
    frame = read_frame(text(STARTED))
    for taken, status in ((True, "SUCCESS"), (False, "LATER")):
        answer = json.loads(reply(frame, taken=taken))
        assert json.loads(answer.pop("data")) == {"status": status}
        assert answer == {
            "code": 200,
            "headers": {"messageId": "m1", "contentType": "application/json"},
            "message": "OK",
        }


def test_a_ping_is_answered_with_what_it_holds() -> None:
    frame = read_frame(text({"opaque": "x"}, kind="SYSTEM", topic="ping"))
    assert json.loads(reply(frame))["data"] == '{"opaque": "x"}'
    assert not frame.says_goodbye
    assert not frame.is_event


def test_a_goodbye_is_recognised() -> None:
    assert read_frame(text(kind="SYSTEM", topic="disconnect")).says_goodbye


@pytest.mark.parametrize(
    "wrong",
    ["", "no json", "[]", "5", "{}", '{"headers": 5}', '{"headers": {}}', '{"headers": {"messageId": ""}}'],
)
def test_what_is_no_frame_is_refused(wrong: str) -> None:
    with pytest.raises(FrameError):
        read_frame(wrong)


@given(st.text() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_nothing_that_comes_breaks_the_reading(anything: str) -> None:
    try:
        frame = read_frame(anything)
    except FrameError:
        return
    assert conference_events(frame) == []


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.text(st.sampled_from("a\0\ud83d\udd12")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(
    kind=st.sampled_from(["meeting_status_change", "meeting_member_status_change"]),
    model=st.dictionaries(st.sampled_from([*STARTED["openConfModel"], "endTime"]), _JSON),  # type: ignore[misc]
    rest=st.dictionaries(st.sampled_from(["statusSeqNum", "changeScene"]), _JSON),
    born=_JSON,
)
def test_whatever_an_event_holds_its_payload_is_json(kind: str, model: Any, rest: Any, born: Any) -> None:
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
    assert event.conference_id == MEETING
    assert event.start_time == datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=timezone.utc)
    assert event.payload() == {
        "event_id": "e1",
        "event_type": "meeting_status_change",
        "scene": "conference_created",
        "conference_id": MEETING,
        "corp_id": "ding1",
        "sequence": 7,
        "happened_at": "2023-11-14T22:13:20.456+00:00",
        "title": "发布 1.0",
        "status": "started",
        "start_time": "2023-11-14T22:13:20.123+00:00",
        "end_time": None,
        "creator_id": "user1",
        "creator_nick": "一",
        "room_code": "1234567890",
        "join_url": "https://meeting.example/1",
        "schedule_conference_id": "s1",
        "biz_type": "0",
        "members": [],
    }


@pytest.mark.parametrize(
    ("number", "status"), [(0, "not_started"), (1, "ended"), ("2", "started"), (9, None), (True, None)]
)
def test_a_status_is_named(number: object, status: str | None) -> None:
    assert only({"openConfModel": {"conferenceId": "c", "status": number}}).status == status


def test_members_of_several_meetings_are_an_event_for_each() -> None:
    frame = read_frame(text(JOINED, eventType="meeting_member_status_change"))
    one, other = conference_events(frame)
    assert (one.conference_id, other.conference_id) == (MEETING, "another")
    assert one.scene == "user_join"
    assert one.title is None
    assert [member["user_id"] for member in one.members] == ["u1", "u2"]
    assert one.payload()["members"][0] == {
        "user_id": "u1",
        "nick": "A",
        "host": True,
        "co_host": False,
        "attend_status": 1,
        "join_time": "2023-11-14T22:13:20.000+00:00",
    }


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (STARTED, {"eventType": "chat_update_title"}),
        (STARTED, {"eventId": None}),
        ({}, {}),
        ({"openConfModel": []}, {}),
        ({"openConfModel": {"title": "no id"}}, {}),
        ({"openConfModel": {"conferenceId": "a/../b"}}, {}),
        ({"openMemberModels": 5}, {"eventType": "meeting_member_status_change"}),
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
    untold = {"openConfModel": {"conferenceId": "c"}, "changeScene": "conference_created"}
    assert EventFilter(**wanted).wants(only(untold)) is (fits and wanted.keys() <= {"scenes"})


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
