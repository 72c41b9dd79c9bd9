"""The connection form of Airflow 2.11, whose environment is another than that of the tests.

``AIRFLOW_2_BIN`` says where its command ``airflow`` is.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE
from airflow_provider_dingconf.sandbox import Sandbox
from system.airflow_processes import DeploymentError, environment, free_port, output_of, running
from system.ui.window import Window

PROJECT = Path(__file__).parents[3]
USER = "admin"
WRONG = "not-the-sandbox-secret"


@pytest.fixture(scope="module")
def airflow(window: Window, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a webserver where the window's user has logged in."""
    command = PROJECT / os.environ.get("AIRFLOW_2_BIN", ".matrix/3.10-2.11.2/bin/airflow")
    if not command.is_file():
        raise DeploymentError(
            f"{command} is missing: this test needs an environment with Airflow 2.11 and this provider. "
            "`make .matrix/3.10-2.11.2/.ready` sets it up; AIRFLOW_2_BIN names the `airflow` of another one."
        )
    home, port, password = tmp_path_factory.mktemp("webserver"), str(free_port()), secrets.token_urlsafe(9)
    env = environment(
        home,
        TMPDIR=str(home),
        AIRFLOW__CORE__TEST_CONNECTION="Enabled",
        AIRFLOW__WEBSERVER__SECRET_KEY=secrets.token_hex(32),
    )
    env["PATH"] = f"{command.parent}{os.pathsep}{env['PATH']}"
    names = ("--username", USER, "--firstname", "Ada", "--lastname", "Min", "--email", "admin@example.com")
    output_of([str(command), "db", "migrate"], env)
    output_of([str(command), "users", "create", *names, "--role", "Admin", "--password", password], env)
    webserver = [str(command), "webserver", "--hostname", "127.0.0.1", "--port", port, "--workers", "1"]
    url = f"http://127.0.0.1:{port}"
    with running("webserver", webserver, env, home / "component-logs") as component:
        component.wait_for_address(f"{url}/health")
        window.open(f"{url}/login/")
        window.fill_in("input[name=username]", USER)
        window.fill_in("input[name=password]", password)
        window.click("input[type=submit]")
        window.wait_for_text("DAGs")
        yield url


@pytest.fixture
def form(airflow: str, window: Window) -> Window:
    """Return the window with the form of a new connection of the type DingTalk."""
    window.open(f"{airflow}/connection/add")
    window.click("[aria-labelledby=select2-conn_type-container]", until=".select2-search__field")
    window.find(".select2-search__field").send_keys("DingTalk", Keys.ENTER)
    window.wait_for_text("Client ID", "Client Secret")
    return window


def fill_in_and_test(window: Window, dingtalk: Sandbox, secret: str, client_id: str = "") -> None:
    """Fill in what an internal app needs, and press the Test button."""
    window.fill_in("#conn_id", "dingtalk_release")
    window.fill_in("#host", dingtalk.url)
    window.fill_in("#login", client_id or dingtalk.client_id)
    window.fill_in("#password", secret)
    window.click("#test-connection")


def test_the_form_explains_itself(form: Window) -> None:
    shown = form.wait_for_text("Host", "Organisation (corpId)", "Suite ticket", "Access token")
    for field in CONNECTION_TYPE["conn-fields"].values():
        assert field["label"] in shown
        assert field["description"] in shown
    for name, placeholder in CONNECTION_TYPE["ui-field-behaviour"]["placeholders"].items():
        assert form.find(f"#{name}").get_attribute("placeholder") == placeholder
    assert not form.all("#schema")
    kinds = {
        "password": "password",
        "suite_ticket": "password",
        "access_token": "password",
        "corp_id": "text",
    }
    assert kinds == {name: form.find(f"input[name$={name}]").get_attribute("type") for name in kinds}


def test_the_test_button_says_that_a_connection_works(form: Window, dingtalk: Sandbox) -> None:
    fill_in_and_test(form, dingtalk, dingtalk.client_secret)
    form.wait_for_text(f"{dingtalk.url} gave an access token for the internal app", "valid until")


def test_the_test_button_reads_the_fields_of_the_extra(form: Window, dingtalk: Sandbox) -> None:
    fields = json.loads(dingtalk.connection_json("third_party"))
    for name, value in fields["extra"].items():
        form.fill_in(f"input[name$={name}]", value)
    fill_in_and_test(form, dingtalk, fields["password"], fields["login"])
    form.wait_for_text("gave an access token for the third-party app", "valid until")


def test_the_test_button_says_what_to_correct(form: Window, dingtalk: Sandbox) -> None:
    fill_in_and_test(form, dingtalk, WRONG)
    shown = form.wait_for_text(
        "Client ID and Client Secret do not belong together.",
        "Compare the connection's Client ID (login) and Client Secret (password) with the app's own.",
    )
    assert WRONG not in shown
