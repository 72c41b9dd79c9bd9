"""Meeting ids that always behave the same way, so that every error can be rehearsed: one table.

The command line's ``--help`` and the documentation show the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Final, Literal

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import CredentialsError
from airflow_provider_dingconf.sandbox.faults import ANSWERS, OLD_FORM, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PREFIX: Final = "sandbox-"

Status = Literal["not_started", "started", "ended"]
"""Of a meeting."""


@dataclass(frozen=True)
class Reserved:
    """A meeting whose id says what calls about it come to.

    :param rehearses: what happens, for the user.
    :param fault: what goes wrong with a call that DingTalk would have let through. Where it has
        ``times``, the call after them succeeds and the count begins anew.
    :param status: of the meeting, where a call does go through.
    """

    conference_id: str
    rehearses: str
    fault: Fault | None = None
    status: Status = "started"


SLOW: Final = PREFIX + "slow"
_LONG: Final = 3

_WITHOUT_CODE: Final = {
    "addressBanned": "The ban of this address, as JSON. Only this call is refused; a fault can refuse all.",
    "addressBanned-html": "The ban of this address, as an HTML page.",
    "notConfirmed": 'HTTP 200 with "success": false.',
    "unreadableAnswer": "HTTP 200 without JSON.",
    "redirect": "A redirect to another host.",
    "gateway": "HTTP 502 with an HTML page, from a gateway in front of DingTalk.",
}


def _rows() -> Iterable[Reserved]:
    row = Reserved
    yield row(PREFIX + "open", "A running meeting: locks and unlocks.")
    yield row(PREFIX + "notStarted", "A meeting that has not started.", status="not_started")
    yield row(PREFIX + "ended", "A meeting that has ended.", status="ended")
    yield row(
        PREFIX + "flaky",
        "systemError twice, then success, and so on.",
        Fault(code="systemError", times=2),
    )
    yield row(
        PREFIX + "answerLost",
        "Takes effect, but the connection breaks before the answer; the next call succeeds, and so on.",
        Fault(drop=True, after=True, times=1),
    )
    yield row(
        PREFIX + "connectionLost", "The connection breaks before the call takes effect.", Fault(drop=True)
    )
    yield row(SLOW, "Succeeds after 5 s; --slow sets another time.", Fault(delay=5.0))
    for name, rehearses in _WITHOUT_CODE.items():
        yield row(PREFIX + name, rehearses, Fault(code=name))
    for name, answer in ANSWERS.items():
        error = ERRORS.get(name.removesuffix(OLD_FORM))
        # Refused credentials are the answer of a token call: a wrong password rehearses them.
        if error and not issubclass(error.error, CredentialsError) and name not in _WITHOUT_CODE:
            form = "" if name == error.code else " with errcode"
            yield row(PREFIX + name, f"HTTP {answer.status}{form}: {error.meaning}", Fault(code=name))


RESERVED: Final[Mapping[str, Reserved]] = {row.conference_id: row for row in _rows()}
"""The reserved meetings, by id."""


def with_slow(seconds: float) -> Mapping[str, Reserved]:
    """Return the table with another time for the slow meeting."""
    return {**RESERVED, SLOW: replace(RESERVED[SLOW], fault=Fault(delay=seconds))}


def listing() -> Iterator[tuple[str, str]]:
    """Yield the table for people: ids and what they rehearse, with a long run of alike ids as one row."""
    for rehearses, rows in groupby(RESERVED.values(), key=lambda row: row.rehearses):
        ids = [row.conference_id for row in rows]
        for shown in ids if len(ids) <= _LONG else [f"{ids[0]} to {ids[-1]}"]:
            yield shown, rehearses
