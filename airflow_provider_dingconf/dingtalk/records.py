"""DingTalk's JSON as typed values: functions that read one field, and records, whose fields name DingTalk's.

A missing or malformed field is None: it does not make the response unreadable.
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
_MAX_NUMBER = 2**63 - 1  # larger whole numbers do not fit into every database and JSON parser
_MAX_MILLISECONDS = 10**15


def text_of(content: Mapping[str, Any], *names: str) -> str | None:
    """Return the first of the named fields that holds a string or a whole number, as a string.

    NUL and unpaired surrogates (of a text that was cut within an emoji) are replaced: databases refuse them.
    """
    for name in names:
        value = content.get(name)
        if isinstance(value, str) and value:
            return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)
        if type(value) is int:  # not a bool
            return str(value)
    return None


def number_of(content: Mapping[str, Any], name: str) -> int | None:
    """Return the whole number in a field, which may be a string of digits."""
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
    """Return the time in a field of milliseconds since the epoch; None also for 0."""
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
    """Return a dataclass field that is read from JSON; its default is for a field that is missing there.

    :param kind: the function above that reads it.
    :param name: DingTalk's name of the field.
    :param needed: what a record without it lacks, for the message; empty if it may be None.
    """
    return field(default=kind({}, name), metadata={"read": kind, "name": name, "needed": needed}, **options)


def fields_in(record: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a record's fields from a JSON object, by the names in the record."""
    values = {}
    for one in fields(record):
        if about := one.metadata:
            values[one.name] = about["read"](content, about["name"])
            if about["needed"] and values[one.name] is None:
                raise unreadable(f"{record.what} without {about['needed']}")
    return values


@dataclass(frozen=True)
class Record:
    """The base of dataclasses that are read from JSON by :func:`json_field`."""

    what: ClassVar[str]

    @classmethod
    def read(cls, content: object) -> Self:
        """Return the record from a JSON object; raise a ResponseError if it lacks what the record needs."""
        if not isinstance(content, dict):
            raise unreadable(f"{cls.what} that is no object")
        return cls(**fields_in(cls, content))

    def as_dict(self, timespec: str = "auto") -> dict[str, Any]:
        """Return plain values for an XCom: times in ISO 8601, durations in seconds.

        :param timespec: the precision of the times, as in ``datetime.isoformat``.
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
    next_token: str | None  # for the call that reads the next page; None on the last page


def read_page(
    content: Mapping[str, Any], keys: Sequence[str], read: Callable[[object], Any], tokens: Sequence[str] = ()
) -> Page:
    """Return the page in a response; it is empty if the list is missing.

    A token continues the list unless ``hasMore`` is false: some lists have no ``hasMore``.

    :param keys: possible names of the list.
    :param tokens: the tokens of the earlier pages. If one comes again, the list is endless.
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
