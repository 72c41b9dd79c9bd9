"""Meeting ids that always behave the same way, to rehearse every error: one table.

The command line's ``--help`` and the documentation show the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Final, Literal

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import CredentialsError
from airflow_provider_dingconf.sandbox.faults import OLD_FORM, OTHERS, RESPONSES, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Status = Literal["not_started", "started", "ended"]
"""Of a meeting."""


@dataclass(frozen=True)
class Reserved:
    """A meeting whose id decides the result of each call for it."""

    conference_id: str
    rehearses: str  # what happens, for the user
    fault: Fault | None = None  # after its ``times`` one call succeeds, and the count begins anew
    status: Status = "started"


_SLOW: Final = "sandbox-slow"
_LONG: Final = 3


def _rows() -> Iterator[Reserved]:
    yield Reserved("sandbox-open", "A running meeting: locks and unlocks.")
    yield Reserved("sandbox-notStarted", "A meeting that has not started.", status="not_started")
    yield Reserved("sandbox-ended", "A meeting that has ended.", status="ended")
    flaky = Fault(code="systemError", times=2)
    yield Reserved("sandbox-flaky", "systemError twice, then success, and so on.", flaky)
    yield Reserved(
        "sandbox-answerLost",
        "Takes effect, but the connection breaks before the response; the next call succeeds, and so on.",
        Fault(drop=True, after=True, times=1),
    )
    lost = Fault(drop=True)
    yield Reserved("sandbox-connectionLost", "The connection breaks before the call takes effect.", lost)
    yield Reserved(_SLOW, "Succeeds after 5 s; --slow sets another time.", Fault(delay=5.0))
    for name, (rehearses, _) in OTHERS.items():
        yield Reserved(f"sandbox-{name}", rehearses, Fault(code=name))
    for name in [one for one in RESPONSES if one not in OTHERS]:
        row = ERRORS[name.removesuffix(OLD_FORM)]
        # Only a token call gets refused credentials: a wrong password rehearses them.
        if not issubclass(row.error, CredentialsError):
            form = "" if name == row.code else " with errcode"
            rehearses = f"HTTP {RESPONSES[name].status}{form}: {row.meaning}"
            yield Reserved(f"sandbox-{name}", rehearses, Fault(code=name))


RESERVED: Final[Mapping[str, Reserved]] = {row.conference_id: row for row in _rows()}
"""The reserved meetings, by id."""


def with_slow(seconds: float) -> Mapping[str, Reserved]:
    """Return the table with another time for the slow meeting."""
    return {**RESERVED, _SLOW: replace(RESERVED[_SLOW], fault=Fault(delay=seconds))}


def listing() -> Iterator[tuple[str, str]]:
    """Yield the table for people: ids and what they rehearse; a long run of similar ids is one row."""
    for rehearses, rows in groupby(RESERVED.values(), key=lambda row: row.rehearses):
        ids = [row.conference_id for row in rows]
        for shown in ids if len(ids) <= _LONG else [f"{ids[0]} to {ids[-1]}"]:
            yield shown, rehearses
