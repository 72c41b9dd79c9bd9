"""What names a meeting, which meetings a filter selects, and lists of meetings."""

from __future__ import annotations

import re
from typing import Any

import pytest

from airflow_provider_dingconf.dingtalk.calls import lock_call
from airflow_provider_dingconf.dingtalk.conferences import (
    MAX_CONFERENCE_ID_LENGTH,
    MAX_TITLE,
    ConferenceFilter,
    Reference,
    check_reference,
    list_call,
)
from airflow_provider_dingconf.dingtalk.errors import (
    DingTalkError,
    InvalidConferenceIdError,
    InvalidInputError,
)

NAMES = ["conference_id", "room_code", "schedule_conference_id"]

# Names of a meeting

REFUSED = {
    "": "it is empty", " ": "it is empty", "\t\n": "it is empty", "a b": "' '", "a/b": "'/'", "a/../b": "'/'",
    "a\\b": r"'\\\\'", ".": "'.' would change the path", "..": "'..' would change the path", "a?b": r"'\?'",
    "a#b": "'#'", "a%2Fb": "'%'", "a\nb": r"'\\n'", "a\x00b": r"'\\x00'", "a\x7fb": r"'\\x7f'",
    "会议": r"'\\u4f1a'", "a\u202eb": r"'\\u202e'", "a" * 10_000: "10000 characters",
}  # fmt: skip


@pytest.mark.parametrize(("conference_id", "problem"), REFUSED.items(), ids=range(len(REFUSED)))
def test_a_conference_id_that_is_no_path_segment_is_refused(conference_id: str, problem: str) -> None:
    with pytest.raises(InvalidConferenceIdError, match=rf"^conference_id: .*{problem}") as caught:
        check_reference(conference_id)
    with pytest.raises(InvalidConferenceIdError):
        Reference("conference_id", conference_id)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "conference_id", ["a", "...", "a..b", "-._~!$&'()*+,;=:@", "9" * MAX_CONFERENCE_ID_LENGTH]
)
def test_a_conference_id_that_is_a_path_segment_is_sent_unchanged(conference_id: str) -> None:
    target = lock_call(check_reference(conference_id), "lock").request("t").target
    assert target == f"/v1.0/conference/videoConferences/{conference_id}/lock"


@pytest.mark.parametrize(
    "value", [1234567890.0, -5, True, pytest.param(10**5000, id="huge"), frozenset([1]), b"1"]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_string_is_refused_with_type_and_likely_cause(name: str, value: Any) -> None:
    kind = type(value).__name__
    says = f"^{name}: expected a string, got .* of type {kind}; .*render_template_as_native_obj=True is the .*'{{{{"
    with pytest.raises(InvalidConferenceIdError, match=says):
        check_reference(**{name: value})


@pytest.mark.parametrize("value", [["1"], ("1",), {1}])
def test_a_list_of_names_is_refused_with_what_to_do(value: Any) -> None:
    says = r"^conference_id: expected a string, got .* of type .*; give one, not a list\."
    with pytest.raises(InvalidConferenceIdError, match=says):
        check_reference(value)
    for name in NAMES[1:]:
        says = f"^{name}: it takes one, not a list; .* or find their conference ids first"
        with pytest.raises(InvalidConferenceIdError, match=says):
            check_reference(**{name: value})


@pytest.mark.parametrize(("value", "what"), [("None", "it is 'None'"), ("", "it is empty"), (" ", "it is")])
@pytest.mark.parametrize("name", NAMES)
def test_a_template_without_a_value_is_refused_as_such(name: str, value: str, what: str) -> None:
    says = f"^{name}: {what}.*, as a template or XCom without a value renders; check where it comes from"
    with pytest.raises(InvalidConferenceIdError, match=says):
        check_reference(**{name: value})


def test_a_dict_and_an_int_that_a_template_rendered_natively_are_taken() -> None:
    assert check_reference({"conference_id": "c", "title": "t"}) == Reference("conference_id", "c")
    for name in NAMES[1:]:
        assert check_reference(**{name: 1234567890}) == Reference(name, "1234567890")  # type: ignore[arg-type]
    with pytest.raises(InvalidConferenceIdError, match="got 644272 of type int"):
        check_reference(644272)


@pytest.mark.parametrize("wrong", [{"id": "c", "title": "t"}, {"title": 1, "conference_id": None}, {}])
def test_a_dict_without_a_conference_id_is_refused_with_its_keys(wrong: dict[str, Any]) -> None:
    keys = ", ".join(map(repr, wrong)) or "none"
    with pytest.raises(InvalidConferenceIdError, match=rf"^conference_id: expected a dict .* keys: {keys}\."):
        check_reference(wrong)


def test_the_error_for_a_value_of_another_parameter_names_that_parameter() -> None:
    with pytest.raises(InvalidConferenceIdError, match="a meeting's conferenceId, room_code a room code"):
        check_reference("123 456 7890")


# The filter

LONG_TITLE = "Release " + "x" * MAX_TITLE + "end"


@pytest.mark.parametrize(
    ("wanted", "title", "creator", "taken"),
    [
        ((), None, None, True),
        (("^Exam", "chris"), "Exam 1", "chris", True),
        (("^Exam", "chris"), "Exam 1", "kim", False),
        (("^Exam", "chris"), "An Exam", "chris", False),
        (("^Exam", "chris"), None, "chris", False),
        (("^Release",), LONG_TITLE, None, True),
        (("end",), LONG_TITLE, None, False),
    ],
)
def test_a_filter_selects_by_creator_and_by_the_beginning_of_the_title(
    wanted: tuple[str, ...], title: str | None, creator: str | None, taken: bool
) -> None:
    assert ConferenceFilter(*wanted).takes(title, creator) is taken


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        *(({name: value}, f"{name}: ") for name in ("title_pattern", "creator_id")
          for value in ("", " ", "None", 5, 1.5, True, ["a"], b"a")),
        ({"title_pattern": re.compile("a")}, r"title_pattern: .* pass pattern\.pattern"),
        *(({"title_pattern": pattern}, "title_pattern: .* is not a regular expression: ")
          for pattern in ("(", "a{99999999999}", "(?P<a>")),
    ],
)  # fmt: skip
def test_an_invalid_filter_is_refused_by_its_name(wrong: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{says}"):
        ConferenceFilter(**wrong)


# Lists


@pytest.mark.parametrize(
    ("content", "token"),
    [
        ({"nextToken": "19", "totalCount": 20}, "19"),
        ({"nextToken": "19", "hasMore": True}, "19"),
        ({"nextToken": 19}, "19"),
        ({"nextToken": "19", "hasMore": False}, None),
        ({"nextToken": ""}, None),
        ({"nextToken": None, "hasMore": True}, None),
        ({"hasMore": True}, None),
        ({}, None),
    ],
)
def test_a_token_continues_a_list_unless_dingtalk_says_that_there_is_no_more(
    content: dict[str, Any], token: str | None
) -> None:
    assert list_call().read(content).next_token == token


@pytest.mark.parametrize("tokens", [["a"], ["a", "b"], ["b", "c", "a"]])
def test_a_token_that_comes_again_is_an_error(tokens: list[str]) -> None:
    call = list_call(Reference("schedule_conference_id", "s"), *tokens)
    assert call.target.endswith(f"?maxResults=20&nextToken={tokens[-1]}")
    with pytest.raises(DingTalkError, match="a page that follows itself") as raised:
        call.read({"nextToken": "a"})
    assert raised.value.code == "unreadableAnswer"
    assert call.read({"nextToken": "d"}).next_token == "d"
