"""The newest Airflow 3 in a browser: the connection form, its test, task states, links and logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE
from airflow_provider_dingconf.sandbox import Fault, Sandbox
from system.airflow_api import USER, Airflow, Run
from system.ui.standalone import running_standalone
from system.ui.window import Window

EXAMPLES = Path(__file__).parents[3] / "example_dags"
TOUR = "example_sandbox_tour"
DOCUMENTATION = "https://help.dingtalk.io/open/development"
FORM = "[role=dialog]"
LOCK = "LockConferenceOperator"
WRONG = "not-the-sandbox-secret"
LONGEST = 600
"""Seconds: for what Airflow does while a browser runs, too."""


@pytest.fixture(scope="module")
def airflow(window: Window, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    """Return an Airflow where the window's user has logged in."""
    with running_standalone(tmp_path_factory.mktemp("standalone"), EXAMPLES) as running:
        window.open(running.url)
        window.fill_in("input[name=username]", USER)
        window.fill_in("input[name=password]", running.password)
        window.click("button[type=submit]", "Sign in")
        window.wait_for_text("Dags", "Admin")
        yield running


@pytest.fixture(scope="module")
def connected(airflow: Airflow, window: Window, dingtalk: Sandbox) -> Airflow:
    """Return the Airflow after ``dingtalk_default`` was made with the form."""
    open_form(airflow, window)
    # The picture is of an app of DingTalk's, and not of the sandbox's.
    host, client_id = "https://api.dingtalk.com", "dingq7xkp2mw4hnt8ruv"
    fill_in(window, "dingtalk_default", host, client_id, "a-secret", "443")
    window.picture("connection-form", height=940)
    save(window, dingtalk, "dingtalk_default", dingtalk.client_secret)
    return airflow


@pytest.fixture(scope="module")
def run(connected: Airflow, window: Window) -> str:
    """Return the address of a run of the tour, which was triggered in the window and has ended."""
    connected.wait_for_dags(TOUR)
    window.open(f"{connected.url}/dags/{TOUR}")
    window.click("button", "Trigger", until=FORM)
    window.click(f"{FORM} button", "Trigger")
    window.wait_for(lambda: "/runs/" in window.driver.current_url, "page of the run")
    started = Run(connected, TOUR, window.driver.current_url.rpartition("/")[2])
    assert started.end(LONGEST) == "success"
    return address(started)


def address(run: Run) -> str:
    """Return the address of a run's page."""
    return f"{run.airflow.url}/dags/{run.dag_id}/runs/{run.run_id}"


def open_form(airflow: Airflow, window: Window) -> None:
    """Open the form of a new connection, and choose its type."""
    window.open(f"{airflow.url}/connections")
    window.click("button", "Add Connection", until=f"{FORM} input[name=connection_id]")
    window.click(f"{FORM} input[role=combobox]")
    window.driver.switch_to.active_element.send_keys("DingTalk")
    window.click("[role=option]", "DingTalk", until=f"{FORM} input[name=login]")


def fill_in(window: Window, conn_id: str, host: str, client_id: str, secret: str, port: str) -> None:
    """Fill in what an internal app needs, and the port, which Airflow 3.3.1 and 3.3.2 want for a test."""
    values = {"connection_id": conn_id, "host": host, "login": client_id, "password": secret, "port": port}
    for name, value in values.items():
        window.fill_in(f"{FORM} input[name={name}]", value)


def save(window: Window, dingtalk: Sandbox, conn_id: str, secret: str) -> None:
    """Save a connection to the sandbox, and wait until it is listed."""
    port = dingtalk.url.rpartition(":")[2]
    fill_in(window, conn_id, dingtalk.url, dingtalk.client_id, secret, port)
    window.click(f"{FORM} button", "Save")
    window.wait_for(lambda: not window.all(FORM), "end of the form")
    window.find("tr", conn_id)


def press_test(airflow: Airflow, window: Window, conn_id: str) -> None:
    """Press the Test button of a connection in the list."""
    window.open(f"{airflow.url}/connections")
    row = window.find("tbody tr", conn_id)
    row.find_element("css selector", "button[aria-label='Test Connection']").click()


def test_the_form_explains_itself(airflow: Airflow, window: Window) -> None:
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
    connected: Airflow, window: Window, dingtalk: Sandbox
) -> None:
    press_test(connected, window, "dingtalk_default")
    window.wait_for_text(
        "Test Connection Successful",
        f"{dingtalk.url} gave an access token for the internal app",
        "valid until",
    )
    assert dingtalk.client_secret not in window.driver.page_source


def test_the_test_button_says_what_to_correct(airflow: Airflow, window: Window, dingtalk: Sandbox) -> None:
    open_form(airflow, window)
    save(window, dingtalk, "dingtalk_wrong", WRONG)
    press_test(airflow, window, "dingtalk_wrong")
    window.wait_for_text(
        "Test Connection Failed",
        "Client ID and Client Secret do not belong together.",
        "Compare the connection's Client ID (login) and Client Secret (password) with the app's own.",
    )
    assert WRONG not in window.driver.page_source


def test_each_outcome_is_a_state(window: Window, run: str) -> None:
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


def test_a_failed_task_says_what_to_do(connected: Airflow, window: Window, dingtalk: Sandbox) -> None:
    meeting, dag_id = "644272f14ba3310ae5b0c71d", "example_lock_conference"
    dingtalk.fail(Fault(call="lock", path=f"/{meeting}/", code="noPermission"))
    connected.wait_for_dags(dag_id)
    failing = connected.run(dag_id, conference_id=meeting)
    assert failing.end(LONGEST) == "failed"
    (call,) = [call for call in dingtalk.calls_of("lock") if call.conference_id == meeting]
    window.open(f"{address(failing)}/tasks/lock_conference")
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


def test_a_task_links_to_its_call_and_a_failed_one_to_the_error(window: Window, run: str) -> None:
    window.open(f"{run}/tasks/lock_forbidden/details")
    assert window.follow("DingTalk documentation") == f"{DOCUMENTATION}/api-lockconference"
    assert window.follow("DingTalk error codes") == f"{DOCUMENTATION}/server-api-error-codes-1"
    window.open(f"{run}/tasks/lock/details")
    assert window.follow("DingTalk documentation") == f"{DOCUMENTATION}/api-lockconference"
    assert not window.all("a", "DingTalk error codes")


def test_a_mapped_task_bears_the_id_of_its_meeting(
    connected: Airflow, window: Window, dingtalk: Sandbox
) -> None:
    states = {f"64427{number}f14ba3310be7a92d4": "Success" for number in range(2)}
    states["644272f14ba3310be7a92d4"] = "Skipped"
    for meeting, state in states.items():
        dingtalk.create_conference("Exam", conference_id=meeting)
        if state == "Skipped":
            dingtalk.end(meeting)
    dag_id = "example_mapped_locks"
    connected.wait_for_dags(dag_id)
    mapped = connected.run(dag_id, conference_ids=[*states])
    mapped.end(LONGEST)
    window.open(f"{address(mapped)}/tasks/room.lock_room/mapped")
    window.wait_for_text(*(f"{meeting}\n{state}" for meeting, state in states.items()))
    window.picture("mapped-tasks", height=620)
