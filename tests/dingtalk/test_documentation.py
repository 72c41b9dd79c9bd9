"""Every link to DingTalk's documentation leads to a page that exists."""

from __future__ import annotations

import re
from pathlib import Path

from airflow_provider_dingconf.dingtalk import endpoints
from airflow_provider_dingconf.dingtalk.calls import ERROR_CODES_PAGE, any_call
from airflow_provider_dingconf.dingtalk.endpoints import Endpoint

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
ENDPOINTS = [each for each in vars(endpoints).values() if isinstance(each, Endpoint)]


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
    assert ERROR_CODES_PAGE in PAGES
    assert any_call("GET", "/v1.0/x").endpoint.page is None


def test_every_call_names_a_known_page_and_no_two_have_one_name() -> None:
    assert {each.page for each in ENDPOINTS} <= PAGES
    for names in ({each.kind for each in ENDPOINTS}, {each.name for each in ENDPOINTS}):
        assert len(names) == len(ENDPOINTS)
