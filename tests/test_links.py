"""The links of a task: to the documentation of its call, and of the error it met."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_dingconf.dingtalk.errors import ConferenceClosedError
from airflow_provider_dingconf.links import (
    LINKS_KEY,
    CallDocumentationLink,
    ErrorDocumentationLink,
    links_for,
)
from airflow_provider_dingconf.operators import LockConferenceOperator

LINKS = [CallDocumentationLink(), ErrorDocumentationLink()]
ENDED = ConferenceClosedError("confClosed", code="confClosed")


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("https://api.dingtalk.io", "https://help.dingtalk.io/"),
        ("https://api.dingtalk.com", "https://open.dingtalk.com/"),
        ("http://127.0.0.1:8790", "https://help.dingtalk.io/"),
    ],
)
def test_links_lead_to_the_site_that_goes_with_the_host(host: str, site: str) -> None:
    links = links_for(host, "api-lockconference", ENDED)
    assert set(links) == {"documentation", "error"}
    assert all(link.startswith(site) for link in links.values())
    assert links["documentation"].endswith("/api-lockconference")


def test_a_call_that_went_well_links_to_no_error() -> None:
    assert set(links_for("https://api.dingtalk.io", "api-lockconference", None)) == {"documentation"}


@pytest.mark.parametrize("pushed", [None, links_for("https://api.dingtalk.io", "api-lockconference", None)])
def test_a_link_is_what_the_task_pushed_or_nothing(pushed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.common.compat.sdk import XCom

    task = LockConferenceOperator(task_id="lock", conference_id="1")
    ti_key: Any = object()

    def get_value(*, ti_key: Any, key: str) -> Any:
        return pushed if key == LINKS_KEY else None

    monkeypatch.setattr(XCom, "get_value", get_value)
    shown = [link.get_link(task, ti_key=ti_key) for link in LINKS]
    assert shown == [pushed["documentation"] if pushed else "", ""]


def test_both_operators_links_are_named_for_people() -> None:
    assert [link.name for link in LockConferenceOperator.operator_extra_links] == [
        "DingTalk documentation",
        "DingTalk error codes",
    ]
