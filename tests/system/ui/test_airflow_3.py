"""The newest Airflow 3 in a browser: the connection form, its test, task states, links and logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE
from airflow_provider_dingconf.sandbox import Fault, Sandbox
from system.ui.standalone import USER, Standalone, running_standalone
from system.ui.window import Window

EXAMPLES = Path(__file__).parents[3] / "example_dags"
TOUR = "example_sandbox_tour"
DOCUMENTATION = "https://help.dingtalk.io/open/development"
FORM = "[role=dialog]"
LOCK = "LockConferenceOperator"
WRONG = "not-the-sandbox-secret"


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    with running_standalone(tmp_path_factory.mktemp("standalone"), EXAMPLES) as running:
        yield running


@pytest.fixture(scope="module")
def at_home(airflow: Standalone, window: Window) -> Window:
    """Return the window of a person who has logged in."""
    window.open(airflow.url)
    window.fill_in("input[name=username]", USER)
    window.fill_in("input[name=password]", airflow.password)
    window.click("button[type=submit]", "Sign in")
    window.wait_for_text("Dags", "Admin")
    return window


@pytest.fixture(scope="module")
def connected(airflow: Standalone, at_home: Window, dingtalk: Sandbox) -> Window:
    """Return the window after ``dingtalk_default`` was made with the form."""
    open_form(airflow, at_home)
    # The picture is of an app of DingTalk's, and not of the sandbox's.
    fill_in(
        at_home, "https://api.dingtalk.com", "dingq7xkp2mw4hnt8ruv", "a-secret", "dingtalk_default", "443"
    )
    at_home.picture("connection-form", height=940)
    fill_in_the_sandbox(at_home, dingtalk, "dingtalk_default", dingtalk.client_secret)
    save(at_home, "dingtalk_default")
    return at_home


@pytest.fixture(scope="module")
def run(airflow: Standalone, connected: Window) -> str:
    """Return the address of a run of the tour, which was triggered in the window and has ended."""
    airflow.wait_for_dags(TOUR)
    connected.open(f"{airflow.url}/dags/{TOUR}")
    connected.click("button", "Trigger", until=FORM)
    connected.click(f"{FORM} button", "Trigger")
    connected.wait_for(lambda: "/runs/" in connected.driver.current_url, "page of the run")
    run_id = connected.driver.current_url.rpartition("/")[2]
    assert airflow.end(TOUR, run_id) == "success"
    return f"{airflow.url}/dags/{TOUR}/runs/{run_id}"


def open_form(airflow: Standalone, window: Window) -> None:
    """Open the form of a new connection, and choose its type."""
    window.open(f"{airflow.url}/connections")
    window.click("button", "Add Connection", until=f"{FORM} input[name=connection_id]")
    window.click(f"{FORM} input[role=combobox]")
    window.driver.switch_to.active_element.send_keys("DingTalk")
    window.click("[role=option]", "DingTalk", until=f"{FORM} input[name=login]")


def fill_in(window: Window, host: str, client_id: str, secret: str, conn_id: str, port: str) -> None:
    """Fill in what an internal app needs, and the port, which Airflow 3.3.1 and 3.3.2 want for a test."""
    window.fill_in(f"{FORM} input[name=connection_id]", conn_id)
    window.fill_in(f"{FORM} input[name=host]", host)
    window.fill_in(f"{FORM} input[name=login]", client_id)
    window.fill_in(f"{FORM} input[name=password]", secret)
    window.fill_in(f"{FORM} input[name=port]", port)


def fill_in_the_sandbox(window: Window, dingtalk: Sandbox, conn_id: str, secret: str) -> None:
    """Fill in the sandbox's app."""
    port = dingtalk.url.rpartition(":")[2]
    fill_in(window, dingtalk.url, dingtalk.client_id, secret, conn_id, port)


def save(window: Window, conn_id: str) -> None:
    """Save the connection, and wait until it is listed."""
    window.click(f"{FORM} button", "Save")
    window.wait_for(lambda: not window.all(FORM), "end of the form")
    window.find("tr", conn_id)


def press_test(airflow: Standalone, window: Window, conn_id: str) -> None:
    """Press the Test button of a connection in the list."""
    window.open(f"{airflow.url}/connections")
    row = window.find("tbody tr", conn_id)
    row.find_element("css selector", "button[aria-label='Test Connection']").click()


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
    window.picture("connection-form-extra", height=1460)


def test_the_test_button_says_that_a_connection_works(
    airflow: Standalone, connected: Window, dingtalk: Sandbox
) -> None:
    press_test(airflow, connected, "dingtalk_default")
    connected.wait_for_text(
        "Test Connection Successful",
        f"{dingtalk.url} gave an access token for the internal app",
        "valid until",
    )
    assert dingtalk.client_secret not in connected.driver.page_source


def test_the_test_button_says_what_to_correct(
    airflow: Standalone, at_home: Window, dingtalk: Sandbox
) -> None:
    window = at_home
    open_form(airflow, window)
    fill_in_the_sandbox(window, dingtalk, "dingtalk_wrong", WRONG)
    save(window, "dingtalk_wrong")
    press_test(airflow, window, "dingtalk_wrong")
    window.wait_for_text(
        "Test Connection Failed",
        "Client ID and Client Secret do not belong together.",
        "Compare the connection's Client ID (login) and Client Secret (password) with the app's own.",
    )
    assert WRONG not in window.driver.page_source


def test_each_outcome_is_a_state(at_home: Window, run: str) -> None:
    window = at_home
    window.open(run)
    window.wait_for_text(
        "lock\nSuccess", "lock_flaky\nSuccess", "lock_ended\nSkipped", "lock_forbidden\nFailed"
    )
    window.click("button[aria-label^='Show Graph']", until=".react-flow__node")
    window.click(
        "button[aria-label='Collapse Details Panel']", until="button[aria-label='Show Details Panel']"
    )
    window.wait_for_text(*(f"{LOCK}\n{state}" for state in ("success", "skipped", "failed")))
    window.picture("graph", height=740, fit=".react-flow__controls-fitview")
    window.click("button[aria-label^='Show Grid']")


def test_a_failed_task_says_what_to_do(airflow: Standalone, connected: Window, dingtalk: Sandbox) -> None:
    window, meeting, dag_id = connected, "644272f14ba3310ae5b0c71d", "example_lock_conference"
    dingtalk.fail(Fault(call="lock", path=f"/{meeting}/", code="noPermission"))
    airflow.wait_for_dags(dag_id)
    run_id = airflow.run(dag_id, conference_id=meeting)
    assert airflow.end(dag_id, run_id) == "failed"
    (call,) = [call for call in dingtalk.calls_of("lock") if call.conference_id == meeting]
    window.open(f"{airflow.url}/dags/{dag_id}/runs/{run_id}/tasks/lock_conference")
    sentence = (
        f"noPermission (HTTP 400, request id {call.request_id}). The app may not act on this meeting. "
        "Check that the meeting belongs to the organisation of the connection, and the app's permissions."
    )
    log = window.wait_for_text(f"WARNING\n - {sentence}")
    assert dingtalk.client_secret not in log

    # The picture is of the sentence: in lines that fit, and without where in the code it was raised.
    window.driver.find_element("css selector", "body").send_keys("w")
    window.click("details[open] > summary", sentence)
    window.picture("failed-task", height=580)


def test_a_failed_task_links_to_the_call_and_to_the_error(at_home: Window, run: str) -> None:
    at_home.open(f"{run}/tasks/lock_forbidden/details")
    assert at_home.follow("DingTalk documentation") == f"{DOCUMENTATION}/api-lockconference"
    assert at_home.follow("DingTalk error codes") == f"{DOCUMENTATION}/server-api-error-codes-1"


def test_a_task_that_went_well_links_to_the_call_alone(at_home: Window, run: str) -> None:
    at_home.open(f"{run}/tasks/lock/details")
    assert at_home.follow("DingTalk documentation") == f"{DOCUMENTATION}/api-lockconference"
    assert not at_home.all("a", "DingTalk error codes")


def test_a_mapped_task_bears_the_id_of_its_meeting(
    airflow: Standalone, connected: Window, dingtalk: Sandbox
) -> None:
    meetings = [f"64427{number}f14ba3310be7a92d4" for number in range(3)]
    for meeting in meetings:
        dingtalk.create_conference("Exam", conference_id=meeting)
    dingtalk.end(meetings[2])
    dag_id = "example_mapped_locks"
    airflow.wait_for_dags(dag_id)
    run_id = airflow.run(dag_id, conference_ids=meetings)
    connected.open(f"{airflow.url}/dags/{dag_id}/runs/{run_id}/tasks/room.lock_room/mapped")
    connected.wait_for_text(
        *(
            f"{meeting}\n{state}"
            for meeting, state in zip(meetings, ("Success", "Success", "Skipped"), strict=True)
        )
    )
    connected.picture("mapped-tasks", height=620)
