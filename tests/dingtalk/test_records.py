"""What a field of DingTalk's JSON says, whatever stands in it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.dingtalk.records import (
    duration_of,
    flag_of,
    moment_of,
    number_of,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

START = datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (text_of, "a", "a"), (text_of, 7, "7"), (text_of, "a\0\ud83d", "a\ufffd\ufffd"),
        *((text_of, value, None) for value in (None, "", True, 1.5, ["a"], {})),
        (number_of, 7, 7), (number_of, "7", 7), (number_of, -7, -7), (number_of, 2**63 - 1, 2**63 - 1),
        *((number_of, value, None) for value in (None, "", True, 1.5, "1.5", "٣", 2**63, 10**30, [7])),
        (duration_of, 1500, timedelta(seconds=1.5)), (duration_of, 0, timedelta(0)),
        *((duration_of, value, None) for value in (None, -1, True, "soon", 10**15)),
        (moment_of, 1_700_000_000_123, START), (moment_of, "1700000000123", START),
        *((moment_of, value, None) for value in (None, 0, "0", -1, True, "soon", 10**15 - 1, 10**30)),
        (flag_of, True, True), *((flag_of, value, False) for value in (None, False, 1, "true")),
    ],
)  # fmt: skip
def test_a_field_is_what_its_kind_makes_of_it(kind: Callable[..., Any], value: Any, said: Any) -> None:
    found = kind({"field": value}, "field")
    assert (found, type(found)) == (said, type(said))
