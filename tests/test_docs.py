"""The documentation agrees with the code: the errors with their table, the connection with its form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from airflow_provider_dingconf.dingtalk.error_codes import ERRORS, ErrorCode
from airflow_provider_dingconf.dingtalk.errors import DingTalkError
from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE

DOCS = Path(__file__).parent.parent / "docs"
README = DOCS.parent / "README.md"


def in_the_call(row: ErrorCode) -> str:
    """What the hook itself does about an error, in the page's words."""
    if row.code == "InvalidAuthentication":
        return "a fresh token, once"
    if not row.error.repeat:
        return "nothing"
    return f"again, after {row.wait:g} s or what DingTalk asks" if row.wait else "again, with growing waits"


def line(row: ErrorCode) -> str:
    status = ", ".join(map(str, row.http_status)) or "—"
    outcome = row.outcome.name
    return f"| `{row.code}` | {status} | {in_the_call(row)} | {outcome} | {row.meaning} {row.remedy} |"


def rows_of(page: str, heading: str) -> list[str]:
    section = re.split(r"^## ", (DOCS / page).read_text(), flags=re.MULTILINE)
    table = next(part for part in section if part.startswith(heading))
    return [row for row in table.splitlines() if row.startswith("| `")]


def test_the_page_of_errors_lists_every_code_dingtalk_sends() -> None:
    expected = [
        line(row) for row in ERRORS.values() if row.sent_by_dingtalk and not row.code.startswith("90")
    ]
    assert [
        row for row in rows_of("errors.md", "Codes of DingTalk") if not row.startswith("| `90")
    ] == expected


def test_the_page_of_errors_lists_the_codes_of_this_package() -> None:
    assert rows_of("errors.md", "Conditions without a code of DingTalk's") == [
        line(row) for row in ERRORS.values() if not row.sent_by_dingtalk
    ]


@pytest.mark.parametrize("kind", [DingTalkError, *dict.fromkeys(row.error for row in ERRORS.values())])
def test_the_page_of_errors_names_every_exception(kind: type[DingTalkError]) -> None:
    assert kind.__name__ in (DOCS / "errors.md").read_text()


def test_the_page_of_the_connection_lists_every_field_of_the_form() -> None:
    page = (DOCS / "connection.md").read_text()
    for name, field in CONNECTION_TYPE["conn-fields"].items():
        assert f"| {field['label']} | extra `{name}` |" in page
    for name, label in CONNECTION_TYPE["ui-field-behaviour"]["relabeling"].items():
        assert f"| {label} | `{name}` |" in page


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = README.read_text()
    assert len(text.splitlines()) < 150
    for page in [README, *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [README, *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_no_blank_line_parts_a_table_from_its_header(page: Path) -> None:
    lines = ["", *page.read_text().splitlines(), ""]
    for before, row, after in zip(lines, lines[1:], lines[2:], strict=False):
        if row.startswith("|") and not before.startswith("|"):
            assert re.fullmatch(r"\|( *:?-+:? *\|)+", after), row


def test_the_page_of_promises_names_tests_that_exist() -> None:
    tests = Path(__file__).parent
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (DOCS / "promises.md").read_text())
    assert named
    for file, function in named:
        assert f"def {function}(" in (tests / file).read_text(), f"{file} has no {function}"
