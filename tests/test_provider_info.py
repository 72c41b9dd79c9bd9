"""What Airflow is told of the provider, and what it makes of that."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import airflow
import jsonschema
import pytest

from airflow_provider_dingconf import __version__
from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE, get_provider_info
from airflow_provider_dingconf.hooks import DingTalkConferenceHook


def test_the_provider_info_is_as_airflow_wants_it() -> None:
    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)
    assert get_provider_info()["versions"] == [__version__]


def test_everything_that_is_named_can_be_imported() -> None:
    info = get_provider_info()
    for kind in ("hooks", "operators"):
        for part in info[kind]:
            for module in part["python-modules"]:
                importlib.import_module(module)
    for name in (CONNECTION_TYPE["hook-class-name"], *info["extra-links"]):
        module, _, found = name.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), found), type)
    assert DingTalkConferenceHook.conn_type == CONNECTION_TYPE["connection-type"]
    assert DingTalkConferenceHook.hook_name == CONNECTION_TYPE["hook-name"]


def test_airflow_finds_the_provider_its_hook_and_its_links() -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert manager.providers["airflow-provider-dingconf"].version == __version__
    hook = manager.hooks["dingtalk"]
    assert hook is not None
    assert hook.hook_class_name == CONNECTION_TYPE["hook-class-name"]
    assert set(get_provider_info()["extra-links"]) <= set(manager.extra_links_class_names)


def test_the_form_that_airflow_shows_is_the_declared_one() -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    behaviour = manager.field_behaviours["dingtalk"]
    declared = CONNECTION_TYPE["ui-field-behaviour"]
    hidden = behaviour.get("hidden_fields", behaviour.get("hidden-fields"))
    assert list(hidden or []) == declared["hidden-fields"]
    assert behaviour["relabeling"] == declared["relabeling"]
    shown = {name.rpartition("__")[2] for name in manager.connection_form_widgets if "__dingtalk__" in name}
    assert shown == set(CONNECTION_TYPE["conn-fields"])


@pytest.mark.parametrize("name", ["suite_ticket", "access_token"])
def test_a_secret_field_of_the_form_is_a_password(name: str) -> None:
    assert CONNECTION_TYPE["conn-fields"][name]["schema"]["format"] == "password"
