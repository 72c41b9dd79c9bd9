"""What the newest Airflow makes of the provider: its commands, its schema of the form, its warnings."""

from __future__ import annotations

import json
import pkgutil
import sys
from pathlib import Path

import airflow
import jsonschema
import pytest

import airflow_provider_dingconf
from airflow_provider_dingconf.get_provider_info import get_provider_info
from system.airflow_processes import airflow as command
from system.airflow_processes import environment, output_of, sandbox_connection


def test_the_connection_form_is_what_airflow_asks_for() -> None:
    schema = json.loads((Path(airflow.__file__).parent / "provider.yaml.schema.json").read_text())
    jsonschema.validate(get_provider_info()["connection-types"], schema["properties"]["connection-types"])


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("providers", "hooks"), "airflow_provider_dingconf.hooks.DingTalkConferenceHook"),
        (("providers", "links"), "airflow_provider_dingconf.links.CallDocumentationLink"),
        (("connections", "get", "dingtalk_default"), "dingsandboxapp"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_airflow_lists_the_provider(arguments: tuple[str, ...], shown: str, tmp_path: Path) -> None:
    connection = sandbox_connection("http://127.0.0.1:8790")
    env = environment(tmp_path, AIRFLOW_CONN_DINGTALK_DEFAULT=connection)
    assert shown in command(*arguments, "--output", "json", env=env)


def test_the_provider_uses_nothing_deprecated(tmp_path: Path) -> None:
    names = [
        module.name
        for module in pkgutil.walk_packages(airflow_provider_dingconf.__path__, "airflow_provider_dingconf.")
        if not module.name.endswith("__main__")
    ]
    program = f"import sys; sys.stderr = sys.stdout; import {', '.join(names)}"
    printed = output_of([sys.executable, "-W", "always", "-c", program], environment(tmp_path))
    warnings = [line for line in printed.splitlines() if "Warning" in line]
    assert not [line for line in warnings if "airflow_provider_dingconf" in line]
