"""Every link to DingTalk's documentation leads to a page that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from airflow_provider_dingconf.dingtalk.calls import ERROR_CODES_PAGE, Call, any_call, lock_call
from airflow_provider_dingconf.dingtalk.conferences import (
    Reference,
    check_reference,
    conference_call,
    list_call,
    query_call,
)
from airflow_provider_dingconf.dingtalk.events import open_call
from airflow_provider_dingconf.dingtalk.hosting import close_call, create_call, members_call
from airflow_provider_dingconf.dingtalk.tokens import App

ROOT = Path(__file__).parents[2]
PAGES = {
    line
    for line in (Path(__file__).parent / "documentation_pages.txt").read_text().splitlines()
    if not line.startswith("#")
}
LINK = re.compile(r"https?://(?:help\.dingtalk\.io|open\.dingtalk\.com)/[^\s>)`'\"]*")
SITES = ("https://help.dingtalk.io/open/development/", "https://open.dingtalk.com/document/development/")
FILES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *(path for folder in ("docs", "example_dags", "airflow_provider_dingconf")
      for path in (ROOT / folder).rglob("*") if path.suffix in {".md", ".py"}),
]  # fmt: skip
APP = App("id", "secret")
MEETING = Reference("conference_id", "c")
CALLS = [
    lock_call(MEETING, "lock"),
    conference_call(MEETING),
    query_call(["c"]),
    list_call(),
    list_call(check_reference(room_code="1")),
    list_call(check_reference(schedule_conference_id="s")),
    APP.token_call(),
    open_call(APP),
    create_call("Exam", "chris"),
    close_call(MEETING, "chris"),
    members_call(MEETING),
]


def test_every_link_leads_to_a_known_page() -> None:
    links = [(path.name, link) for path in FILES for link in LINK.findall(path.read_text())]
    assert links
    unknown = [
        (name, link)
        for name, link in links
        if not any(link.startswith(site) and link.removeprefix(site) in PAGES for site in SITES)
        and "{" not in link  # documentation_url builds one
    ]
    assert unknown == []


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_every_call_names_a_known_page(call: Call) -> None:
    assert call.endpoint.page in PAGES


def test_the_page_of_error_codes_is_known_and_any_call_has_none() -> None:
    assert ERROR_CODES_PAGE in PAGES
    assert any_call("GET", "/v1.0/x").endpoint.page is None
