"""The documentation is true: its code runs, its links lead somewhere, and it agrees with the package."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import airflow
import pytest
from runs import dag_bag

from airflow_provider_dingconf import __version__
from airflow_provider_dingconf.dingtalk.error_codes import ERRORS
from airflow_provider_dingconf.dingtalk.errors import DingTalkError
from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE, get_provider_info
from airflow_provider_dingconf.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_dingconf.sandbox import Sandbox

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
AIRFLOW = tuple(map(int, airflow.__version__.split(".")[:2]))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# The code on the pages


class Block(NamedTuple):
    """A block of Python on a page."""

    page: Path
    line: int
    code: str

    @property
    def needs(self) -> tuple[int, int]:
        """The first Airflow that can run it."""
        if "retry_policies" in self.code:
            return 3, 3
        return (3, 0) if "from airflow.sdk" in self.code else (2, 11)

    @property
    def is_dag_file(self) -> bool:
        return "with DAG(" in self.code

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield Block(page, text[: found.start()].count("\n") + 1, found[1])


BLOCKS = list(blocks())
DAG_FILES = [one for one in BLOCKS if one.is_dag_file]
SCRIPTS = [one for one in BLOCKS if not one.is_dag_file]


@pytest.fixture
def meetings(sandbox: Sandbox, conn: Any) -> Sandbox:
    """Return a sandbox with the meetings that the pages speak of."""
    sandbox.create_conference(
        "Release 1.0", conference_id="644272f14ba3310xxxxxxxxx", room_code="1234567890", creator_id="sandbox"
    )
    sandbox.create_conference("Exam 1", conference_id="644272f14ba3310yyyyyyyyy")
    for each in ("644272f14ba3310xxxxxxxxx", "644272f14ba3310yyyyyyyyy"):
        sandbox.conference(each).start_time -= 600_000  # type: ignore[operator]  # the delay of a sensor is over
    return sandbox


def read_dags(block: Block) -> dict[str, Any]:
    """Return the DAGs of a block, as Airflow reads them."""
    if block.needs > AIRFLOW:
        pytest.skip(f"for Airflow {block.needs[0]}.{block.needs[1]} or later")
    bag = dag_bag({f"docs_{block.page.stem.replace('-', '_')}_{block.line}": block.code})
    assert bag.import_errors == {}
    assert bag.captured_warnings == {}
    return dict(bag.dags)


@pytest.mark.parametrize("block", DAG_FILES, ids=str)
def test_every_dag_on_a_page_parses(block: Block, airflow_db: None) -> None:
    (dag,) = read_dags(block).values()
    assert dag.tasks


def test_no_two_dags_on_the_pages_have_the_same_id() -> None:
    pages = {re.search(r'with DAG\(\s*"(\w+)"', one.code)[1]: one for one in DAG_FILES}  # type: ignore[index]
    same = {"release": 2}  # the README's, and the tutorial's
    assert len(pages) == len(DAG_FILES) - len(same)


def run(dag_id: str) -> str:
    """Run a DAG on a page, and return the state in which the run ends."""
    block = next(one for one in DAG_FILES if f'"{dag_id}"' in one.code)
    return str(read_dags(block)[dag_id].test().state)


@pytest.mark.parametrize(
    ("dag_id", "calls"),
    [
        ("release", "roomCode lock unlock"),
        ("locked_section", "roomCode lock unlock"),
        ("separate_tasks", "roomCode lock unlock"),
        ("lock_a_list", "lock lock unlock unlock"),
        ("lock_rooms", "list lock unlock"),
        ("lock_during_the_exam", "roomCode lock unlock"),
        ("mapped_locks", "lock lock unlock unlock"),
        ("attendance", "lock members unlock"),
        ("incident_call", "create close"),
        ("exam", "create lock unlock close"),
        ("create_and_close", "create close"),
        ("check_dingtalk", "list"),
        ("unlock_by_hand", "unlock"),
        ("five_calls", "other other other other other"),
        ("exams_that_started", ""),  # no event has come
    ],
)
def test_a_dag_on_a_page_makes_its_calls(
    dag_id: str, calls: str, airflow_db: None, meetings: Sandbox
) -> None:
    assert run(dag_id) == "success"
    made = [call.name for call in meetings.calls if call.name != "token"]
    assert sorted(made) == sorted(calls.split())


@pytest.mark.parametrize(
    ("call", "code", "state", "unlocks"),
    [
        ("unlock", "confClosed", "success", 1),
        ("unlock", "noPermission", "failed", 1),
        ("lock", "noPermission", "failed", 0),
    ],
)
def test_a_section_on_a_page_ends_as_its_table_says(
    call: str, code: str, state: str, unlocks: int, airflow_db: None, meetings: Sandbox
) -> None:
    meetings.fail(Fault(call=call, code=code))
    assert run("locked_section") == state
    assert len(meetings.calls_of("unlock")) == unlocks


@pytest.mark.parametrize("block", SCRIPTS, ids=str)
def test_every_script_on_a_page_runs(
    block: Block, meetings: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block.code, str(block), "exec"), names)  # noqa: S102
    for name, value in names.items():
        if name.startswith("test_"):
            value(monkeypatch)
    if "print(" in block.code:
        assert capsys.readouterr().out


# The pages themselves


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 110


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_has_plain_words_links_that_lead_somewhere_and_whole_tables(page: Path) -> None:
    text = page.read_text()
    words = r"\b(of its own|all the same|in vain|unsound|told|so that|what came of|at last)\b"
    assert re.findall(words, text, re.IGNORECASE) == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    lines = ["", *text.splitlines(), ""]
    for before, row, after in zip(lines, lines[1:], lines[2:], strict=False):
        if row.lstrip().startswith("|") and not before.lstrip().startswith("|"):
            assert re.fullmatch(r" *\|( *:?-+:? *\|)+", after), f"a blank line parts a table from {row}"


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text().splitlines()
    listed = {line for line in index if line and " " not in line}
    assert {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")} - listed == {"index"}


def test_the_changelog_keeps_its_form() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d", headings[1])
    parts = set(re.findall(r"^### (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE))
    assert parts <= {"Upgrade notes", "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# The pages and the package


def test_the_readme_lists_the_tested_versions() -> None:
    rows = [line.split()[:2] for line in (ROOT / ".ci" / "environments").read_text().splitlines()]
    tested = [row for row in rows if row and row[0][0].isdigit()]
    text = README.read_text()
    assert f"| Apache Airflow | {', '.join(version for _, version in tested)} |" in text
    assert f"| Python | {', '.join(sorted({python for python, _ in tested}))} |" in text


def test_the_site_has_a_row_for_every_error_code() -> None:
    tables = runpy.run_path(str(DOCS / "conf.py"))["myst_substitutions"]
    for row in ERRORS.values():
        table = tables["codes_of_dingtalk" if row.sent_by_dingtalk else "codes_of_this_package"].replace(
            "\u200b", ""
        )
        (line,) = (line for line in table.splitlines() if line.startswith(f"| `{row.code}` |"))
        assert f"`{row.error.__name__}`, {row.outcome.name}" in line
        assert line.endswith(f"| {row.meaning} {row.remedy} |")


def test_the_page_of_errors_names_every_exception() -> None:
    page = (DOCS / "reference" / "errors.md").read_text()
    for error in {DingTalkError, *(row.error for row in ERRORS.values())}:
        assert re.search(rf":members:.*\b{error.__name__}\b", page), error


def test_the_page_of_the_connection_lists_every_field_of_the_form() -> None:
    page = (DOCS / "reference" / "connection.md").read_text()
    for name, field in CONNECTION_TYPE["conn-fields"].items():
        assert f"| {field['label']} | extra `{name}` |" in page
    for name, label in CONNECTION_TYPE["ui-field-behaviour"]["relabeling"].items():
        assert f"| {label} | `{name}` |" in page


def test_the_guides_that_the_provider_info_names_exist() -> None:
    guides = [guide for one in get_provider_info()["integrations"] for guide in one["how-to-guide"]]
    assert {f"/docs/{page.relative_to(DOCS)}" for page in (DOCS / "how-to").glob("*.md")} == set(guides)


def test_the_page_of_promises_names_tests_that_exist() -> None:
    tests = Path(__file__).parent
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (DOCS / "promises.md").read_text())
    assert named
    for file, function in named:
        assert f"def {function}(" in (tests / file).read_text(), f"{file} has no {function}"


# The docstrings of public names


def members(page: str, pattern: str) -> list[str]:
    """Return what a pattern finds on a page of the reference."""
    return re.findall(pattern, (DOCS / "reference" / f"{page}.md").read_text(), re.MULTILINE)


PUBLIC = [
    name
    for page in ("operators", "sensor", "triggers", "notifier", "hook", "errors")
    for name in members(page, r"^\.\. auto(?:class|function):: airflow_provider_dingconf\.([\w.]+)")
]
METHODS = [
    f"hooks.DingTalkConferenceHook.{name}" for name in members("hook", r":members: (.*)")[0].split(", ")
]
WITHOUT_PARAMETERS = {
    "LockedSection",
    "ConferenceSection",
    "LockResult",
    "ConferenceStatus",
    "Outcome",
    "Scope",
    "ErrorCode",
}
"""Classes whose fields are documented one by one."""


def parameters(found: Any) -> set[str]:
    """Return the parameters of a function, or of a class and those of its bases that are this package's."""
    parts = [found]
    if inspect.isclass(found):
        own = [one for one in found.__mro__ if one.__module__.startswith("airflow_provider_dingconf")]
        parts = [one.__init__ for one in own if "__init__" in vars(one)]
    named = (one for part in parts for one in inspect.signature(part).parameters.values())
    return {one.name for one in named if one.kind not in {one.VAR_KEYWORD, one.VAR_POSITIONAL}} - {"self"}


def sources(found: Any) -> str:
    """Return the text of a class and its bases; of anything else, none."""
    kinds = found.__mro__ if inspect.isclass(found) else ()
    return "".join(map(inspect.getsource, (kind for kind in kinds if "dingconf" in kind.__module__)))


def documented(found: Any, owner: Any) -> set[str]:
    """Return the parameters that a docstring explains, or the one to which it refers, or a comment."""
    doc, seen = inspect.getdoc(found) or "", set()
    while names := set(re.findall(r"(?:those of|as|see) :(?:meth|class):`~?([\w.]+)`", doc)) - seen:
        seen |= names
        doc += "".join(inspect.getdoc(getattr(owner, name, None)) or "" for name in names)
    described = re.findall(r"^    (\w+): .*#: |^    #: .*\n    (\w+): ", sources(found), re.MULTILINE)
    return {*re.findall(r":param (\w+):", doc), *(name for names in described for name in names)}


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS])
def test_every_parameter_of_a_public_name_is_documented(name: str) -> None:
    module, *owners, last = name.split(".")
    try:
        owner = importlib.import_module(f"airflow_provider_dingconf.{module}")
        for each in owners:
            owner = getattr(owner, each)
        found = getattr(owner, last)
    except ImportError as error:  # events are for Airflow 3
        pytest.skip(str(error))
    assert inspect.getdoc(found)
    if last in WITHOUT_PARAMETERS or not callable(found):
        return
    for function in (found, getattr(owner, f"a{last}", found)):
        assert parameters(function) - documented(function, owner) == set(), function
