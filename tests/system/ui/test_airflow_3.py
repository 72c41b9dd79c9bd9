"""The newest Airflow 3 in a browser: the connection form, its test, task states, links and logs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE
from airflow_provider_dingconf.sandbox import Sandbox
from system.airflow_processes import sandbox_connection
from system.ui.standalone import USER, Standalone, running_standalone
from system.ui.window import Window

DAGS = Path(__file__).parent / "dags"
DOCUMENTATION = "https://help.dingtalk.io/open/development"
FORM = "[role=dialog]"
WRONG = "not-the-sandbox-secret"


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    with running_standalone(tmp_path_factory.mktemp("standalone"), DAGS) as running:
        yield running


@pytest.fixture(scope="module")
def run(airflow: Standalone, dingtalk: Sandbox) -> str:
    """Return the id of a run of ``meeting_locks`` that has ended."""
    airflow.connect(json.loads(sandbox_connection(dingtalk.url)))
    airflow.wait_for_dags("meeting_locks")
    return airflow.run("meeting_locks")


@pytest.fixture
def at_home(airflow: Standalone, window: Window) -> Window:
    """Return a window of a person who has logged in."""
    window.open(airflow.url)
    window.fill_in("input[name=username]", USER)
    window.fill_in("input[name=password]", airflow.password)
    window.click("button[type=submit]", "Sign in")
    window.wait_for_text("Dags", "Admin")
    return window


def open_form(airflow: Standalone, window: Window) -> None:
    """Open the form of a new connection, and choose its type."""
    window.open(f"{airflow.url}/connections")
    window.click("button", "Add Connection", until=f"{FORM} input[name=connection_id]")
    window.click(f"{FORM} input[role=combobox]")
    window.driver.switch_to.active_element.send_keys("DingTalk")
    window.click("[role=option]", "DingTalk", until=f"{FORM} input[name=login]")


def fill_in(window: Window, dingtalk: Sandbox, conn_id: str, secret: str) -> None:
    """Fill in what an internal app needs, and the port, which Airflow 3.3.1 and 3.3.2 want for a test."""
    window.fill_in(f"{FORM} input[name=connection_id]", conn_id)
    window.fill_in(f"{FORM} input[name=host]", dingtalk.url)
    window.fill_in(f"{FORM} input[name=login]", dingtalk.client_id)
    window.fill_in(f"{FORM} input[name=password]", secret)
    window.fill_in(f"{FORM} input[name=port]", dingtalk.url.rpartition(":")[2])


def save_and_test(window: Window, conn_id: str) -> None:
    """Save the connection, and press its Test button."""
    window.click(f"{FORM} button", "Save")
    window.wait_for(lambda: not window.all(FORM), "end of the form")
    window.find("tr", conn_id)
    position = [conn_id in row.text for row in window.all("tbody tr")].index(True)
    window.all("tbody tr")[position].find_element(
        "css selector", "button[aria-label='Test Connection']"
    ).click()


def test_the_form_explains_itself(airflow: Standalone, at_home: Window) -> None:
    window = at_home
    open_form(airflow, window)

    behaviour = CONNECTION_TYPE["ui-field-behaviour"]
    window.wait_for_text("Host", "Client ID", "Client Secret")
    for name in ("host", "login", "password"):
        field = window.find(f"{FORM} input[name={name}]")
        assert field.get_attribute("placeholder") == behaviour["placeholders"][name]
    assert not window.all(f"{FORM} [name=schema]")

    window.click(f"{FORM} button", "Extra Fields", until="#element_corp_id")
    fields = CONNECTION_TYPE["conn-fields"].values()
    window.wait_for_text("Organisation (corpId)", "Suite ticket", "Access token")
    window.wait_for_text(*(f"{field['label']}\n{field['description']}" for field in fields))

    def kind(css: str) -> str | None:
        return window.driver.find_element("css selector", css).get_attribute("type")

    secret = [f"{FORM} input[name=password]", "#element_suite_ticket", "#element_access_token"]
    assert [kind(css) for css in secret] == ["password"] * 3
    assert kind("#element_corp_id") == "text"
    window.picture("connection-form-extra", height=1120)


def test_the_test_button_says_that_a_connection_works(
    airflow: Standalone, at_home: Window, dingtalk: Sandbox
) -> None:
    window = at_home
    open_form(airflow, window)
    fill_in(window, dingtalk, "dingtalk_release", dingtalk.client_secret)
    window.picture("connection-form", height=880)
    save_and_test(window, "dingtalk_release")
    window.wait_for_text(
        "Test Connection Successful",
        f"{dingtalk.url} gave an access token for the internal app",
        "valid until",
    )
    assert dingtalk.client_secret not in window.driver.page_source


def test_the_test_button_says_what_to_correct(
    airflow: Standalone, at_home: Window, dingtalk: Sandbox
) -> None:
    window = at_home
    open_form(airflow, window)
    fill_in(window, dingtalk, "dingtalk_wrong", WRONG)
    save_and_test(window, "dingtalk_wrong")
    window.wait_for_text(
        "Test Connection Failed",
        "Client ID and Client Secret do not belong together.",
        "Compare the connection's Client ID (login) and Client Secret (password) with the app's own.",
    )
    assert WRONG not in window.driver.page_source


def test_each_outcome_is_a_state(airflow: Standalone, at_home: Window, run: str) -> None:
    window = at_home
    window.open(f"{airflow.url}/dags/meeting_locks/runs/{run}")
    window.wait_for_text("lock_ended\nSkipped", "lock_forbidden\nFailed", "Task Instances")
    window.picture("run")

    states = {
        (task["task_id"], task["map_index"]): task["state"] for task in airflow.tasks("meeting_locks", run)
    }
    assert states == {
        ("release_room.lock_conference", -1): "success",
        ("release", -1): "success",
        ("release_room.unlock_conference", -1): "success",
        ("lock_ended", -1): "skipped",
        ("lock_forbidden", -1): "failed",
        ("lock_rooms", 0): "success",
        ("lock_rooms", 1): "success",
        ("lock_rooms", 2): "skipped",
    }


def test_a_mapped_task_bears_the_id_of_its_meeting(airflow: Standalone, at_home: Window, run: str) -> None:
    at_home.open(f"{airflow.url}/dags/meeting_locks/runs/{run}/tasks/lock_rooms/mapped")
    at_home.wait_for_text("sandbox-open", "sandbox-flaky", "sandbox-confClosed")
    at_home.picture("mapped-tasks")


def test_a_failed_task_says_what_to_do(
    airflow: Standalone, at_home: Window, dingtalk: Sandbox, run: str
) -> None:
    window = at_home
    (call,) = [call for call in dingtalk.calls_of("lock") if call.conference_id == "sandbox-noPermission"]
    window.open(f"{airflow.url}/dags/meeting_locks/runs/{run}/tasks/lock_forbidden")
    log = window.wait_for_text(
        "noPermission: ",
        f"request id {call.request_id}",
        "The app may not act on this meeting.",
        "Check that the meeting belongs to the organisation of the connection, and the app's permissions.",
    )
    assert dingtalk.client_secret not in log

    links = {link.text: link.get_attribute("href") for link in window.all("a", "DingTalk")}
    assert links == {
        "DingTalk documentation": f"{DOCUMENTATION}/api-lockconference",
        "DingTalk error codes": f"{DOCUMENTATION}/server-api-error-codes-1",
    }
    window.picture("failed-task")


def test_a_task_that_went_well_links_to_the_documentation_alone(
    airflow: Standalone, at_home: Window, run: str
) -> None:
    window = at_home
    window.open(f"{airflow.url}/dags/meeting_locks/runs/{run}/tasks/release_room.lock_conference")
    link = window.find("a", "DingTalk documentation")
    assert link.get_attribute("href") == f"{DOCUMENTATION}/api-lockconference"
    assert not window.all("a[href]", "DingTalk error codes")
