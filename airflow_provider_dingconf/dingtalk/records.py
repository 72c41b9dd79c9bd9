"""DingTalk's JSON as values: functions that read one field, and records, whose fields name DingTalk's.

A field that DingTalk leaves out, or fills with something else, is None: one odd field costs no response.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from airflow_provider_dingconf.dingtalk.errors import ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_MAX_NUMBER = 2**63 - 1  # the largest whole number that every reader of JSON, and every database, can hold
_MAX_MILLISECONDS = 10**15


def text_of(content: Mapping[str, Any], *names: str) -> str | None:
    """Return the first of the named fields that holds a text or a whole number.

    NUL and half of a surrogate pair, as in a text cut within an emoji, are replaced: no database takes them.
    """
    for name in names:
        value = content.get(name)
        if isinstance(value, str) and value:
            return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
        if type(value) is int:  # not a bool
            return str(value)
    return None


def number_of(content: Mapping[str, Any], name: str) -> int | None:
    """Return the whole number in a field, which may be a text of digits."""
    text = text_of(content, name) or ""
    number = int(text) if re.fullmatch("-?[0-9]{1,19}", text) else None
    return number if number is not None and abs(number) <= _MAX_NUMBER else None


def duration_of(content: Mapping[str, Any], name: str) -> timedelta | None:
    """Return the duration in a field of milliseconds."""
    milliseconds = number_of(content, name)
    if milliseconds is None or not 0 <= milliseconds < _MAX_MILLISECONDS:
        return None
    return timedelta(milliseconds=milliseconds)


def moment_of(content: Mapping[str, Any], name: str) -> datetime | None:
    """Return the moment in a field of milliseconds since the epoch; None also for 0."""
    since = duration_of(content, name)
    try:
        return _EPOCH + since if since else None
    except OverflowError:
        return None


def flag_of(content: Mapping[str, Any], name: str) -> bool:
    """Return whether a field is true."""
    return content.get(name) is True


def json_field(
    kind: Callable[[Mapping[str, Any], str], Any], name: str, needed: str = "", **options: Any
) -> Any:
    """Return a dataclass field that is read from JSON; its default stands for a field that DingTalk left out.

    :param kind: the function above that reads it.
    :param name: what DingTalk calls it.
    :param needed: what a record without it lacks, for the message; empty if it may be None.
    """
    return field(default=kind({}, name), metadata={"read": kind, "name": name, "needed": needed}, **options)


def fields_in(record: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a record's fields in a JSON object, by the record's names.

    :raises ResponseError: the object lacks what the record needs.
    """
    values = {}
    for one in fields(record):
        if about := one.metadata:
            values[one.name] = about["read"](content, about["name"])
            if about["needed"] and values[one.name] is None:
                raise unreadable(f"{record.what} without {about['needed']}")
    return values


@dataclass(frozen=True)
class Record:
    """What DingTalk says of one thing: the base of dataclasses with fields of :func:`json_field`."""

    what: ClassVar[str]

    @classmethod
    def read(cls, content: object) -> Self:
        """Return the record in a JSON object of DingTalk's.

        :raises ResponseError: there is no object, or it lacks what the record needs.
        """
        if not isinstance(content, dict):
            raise unreadable(f"{cls.what} that is no object")
        return cls(**fields_in(cls, content))

    def as_dict(self, timespec: str = "auto") -> dict[str, Any]:
        """Return plain values for an XCom: times in ISO 8601, durations in seconds.

        :param timespec: how exact the times are: of ``datetime.isoformat``.
        """
        return {name: _plain(value, timespec) for name, value in vars(self).items()}


def _plain(value: Any, timespec: str) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec=timespec)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, tuple):
        return [dict(one) for one in value]
    return value.value if isinstance(value, Enum) else value


class Page(NamedTuple):
    """One page of a list."""

    items: tuple[Any, ...]
    next_token: str | None  # what the next page is asked for with; None on the last page


def read_page(
    content: Mapping[str, Any], keys: Sequence[str], read: Callable[[object], Any], tokens: Sequence[str] = ()
) -> Page:
    """Return the page in a response; it is empty if the list is missing.

    A token continues the list unless ``hasMore`` is false: of some lists, DingTalk sends no ``hasMore``.

    :param keys: what DingTalk may call the list.
    :param tokens: the tokens of the pages before; one of them again would be an endless list.
    :raises ResponseError: the response is not as documented, or the list is endless.
    """
    key = next((one for one in keys if one in content), keys[0])
    listed = content.get(key)
    if not isinstance(listed, (list, type(None))):
        raise unreadable(f"{key} that is no list")
    token = None if content.get("hasMore") is False else text_of(content, "nextToken")
    if token in tokens:
        raise unreadable("a page that follows itself")
    return Page(tuple(map(read, listed or [])), token)


def unreadable(what: str) -> ResponseError:
    """Return the error of a response that is not as documented."""
    return ResponseError(f"the response holds {what}", code="unreadableAnswer")
