"""What the provider declares to Airflow, and what Airflow makes of it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest
from airflow.models import Connection
from airflow.providers_manager import ProvidersManager

from airflow_provider_dingconf import __version__
from airflow_provider_dingconf.get_provider_info import CONNECTION_TYPE, get_provider_info
from airflow_provider_dingconf.hooks import DingTalkConferenceHook

NAME = "airflow-provider-dingconf"
BEHAVIOUR: dict[str, Any] = CONNECTION_TYPE["ui-field-behaviour"]
AIRFLOW = tuple(map(int, airflow.__version__.split(".")[:2]))


def schema(name: str) -> dict[str, Any]:
    return dict(json.loads((Path(airflow.__file__).parent / name).read_text()))


def test_airflows_own_schemas_accept_what_is_declared() -> None:
    jsonschema.validate(get_provider_info(), schema("provider_info.schema.json"))
    form = {name.replace("-", "_"): value for name, value in BEHAVIOUR.items()}
    jsonschema.validate(form, schema("customized_form_field_behaviours.schema.json"))
    # The schema of provider.yaml is stricter; it knows form fields since Airflow 3.2.
    wanted = schema("provider.yaml.schema.json")
    kind = wanted["properties"]["connection-types"]
    known = kind["items"]["properties"]
    described = {
        name: value
        for name, value in CONNECTION_TYPE.items()
        if "conn-fields" in known or name in {"connection-type", "hook-class-name"}
    }
    jsonschema.validate([described], kind | {n: wanted[n] for n in ("$defs", "definitions") if n in wanted})


def test_everything_that_is_named_can_be_imported() -> None:
    info = get_provider_info()
    for kind in ("hooks", "operators"):
        for part in info[kind]:
            for module in part["python-modules"]:
                assert importlib.import_module(module).__name__ == module
    for name in (CONNECTION_TYPE["hook-class-name"], *info["extra-links"]):
        module, _, found = name.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), found), type)
    assert DingTalkConferenceHook.conn_type == CONNECTION_TYPE["connection-type"]
    assert DingTalkConferenceHook.hook_name == CONNECTION_TYPE["hook-name"]


def test_the_version_and_the_name_are_those_of_the_package() -> None:
    info = get_provider_info()
    assert (info["package-name"], info["versions"]) == (NAME, [__version__])
    assert version(NAME) == __version__
    (found,) = (
        entry_point
        for entry_point in entry_points(group="apache_airflow_provider")
        if entry_point.dist is not None and entry_point.dist.name == NAME
    )
    assert found.load()() == info


def test_all_links_of_the_operators_are_listed() -> None:
    from airflow_provider_dingconf.operators import LockConferenceOperator, UnlockConferenceOperator

    used = {
        f"{type(link).__module__}.{type(link).__name__}"
        for operator in (LockConferenceOperator, UnlockConferenceOperator)
        for link in operator.operator_extra_links
    }
    assert used == set(get_provider_info()["extra-links"])


def test_airflow_finds_the_provider_its_hook_and_its_links() -> None:
    manager = ProvidersManager()
    assert manager.providers[NAME].version == __version__
    hook = manager.hooks["dingtalk"]
    assert hook is not None
    assert (hook.package_name, hook.hook_name) == (NAME, "DingTalk")
    assert hook.hook_class_name == CONNECTION_TYPE["hook-class-name"]
    assert hook.connection_id_attribute_name == "dingtalk_conn_id"
    assert hook.connection_testable
    assert set(get_provider_info()["extra-links"]) <= set(manager.extra_links_class_names)


def test_a_connection_gives_its_hook(conn: Any) -> None:
    hook = Connection(conn_id="dingtalk_default", conn_type="dingtalk").get_hook()
    assert isinstance(hook, DingTalkConferenceHook)
    assert hook.dingtalk_conn_id == "dingtalk_default"


# What the UI gets, in a process of its own: Airflow puts mocks in place of libraries that it does without.
FORM = """
import json
import warnings
from airflow.exceptions import AirflowProviderDeprecationWarning

warnings.simplefilter("ignore")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", AirflowProviderDeprecationWarning)
    try:
        from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
    except ImportError:  # Airflow 2
        from airflow.providers_manager import ProvidersManager

        manager = ProvidersManager()
        prefix = "extra__dingtalk__"
        form = manager.field_behaviours["dingtalk"]
        form["fields"] = {
            name.removeprefix(prefix): {
                "label": widget.field.args[0],
                "description": widget.field.kwargs["description"],
                "secret": widget.is_sensitive and widget.field.field_class.__name__ == "PasswordField",
            }
            for name, widget in manager.connection_form_widgets.items()
            if name.startswith(prefix)
        }
    else:
        (meta,) = (one for one in HookMetaService.hook_meta_data() if one.connection_type == "dingtalk")
        standard = meta.standard_fields.model_dump() if meta.standard_fields else {}
        standard = {name.removeprefix("url_"): field for name, field in standard.items() if field}
        form = {
            "hidden_fields": [name for name, field in standard.items() if field["hidden"]] + ["extra"],
            "relabeling": {name: field["title"] for name, field in standard.items() if field["title"]},
            "placeholders": {
                name: field["placeholder"] for name, field in standard.items() if field["placeholder"]
            },
            "fields": {
                name: {
                    "label": field["schema"]["title"],
                    "description": field["description"],
                    "secret": field["schema"].get("format") == "password",
                }
                for name, field in (meta.extra_fields or {}).items()
            },
        }
form["deprecated"] = [str(one.message) for one in caught if "dingconf" in str(one.message)]
print(json.dumps(form))
"""


@pytest.mark.skipif(
    AIRFLOW == (3, 0) and importlib.util.find_spec("wtforms") is None,
    reason="Airflow 3.0 makes no connection forms without its FAB provider",
)
def test_the_form_that_airflow_shows_is_the_declared_one_and_its_secrets_are_passwords() -> None:
    done = subprocess.run([sys.executable, "-c", FORM], capture_output=True, text=True, check=True)
    form = json.loads(done.stdout.splitlines()[-1])
    # Airflow 2 tests no connection whose form opened without the extra.
    hidden = {*BEHAVIOUR["hidden-fields"]} - ({"extra"} if AIRFLOW < (3, 0) else set())
    assert {*form["hidden_fields"]} == hidden
    assert form["relabeling"] == BEHAVIOUR["relabeling"]
    assert form["placeholders"] == BEHAVIOUR["placeholders"]
    assert form["fields"] == {
        name: {
            "label": declared["label"],
            "description": declared["description"],
            "secret": name in {"suite_ticket", "access_token"},
        }
        for name, declared in CONNECTION_TYPE["conn-fields"].items()
    }
    if AIRFLOW >= (3, 2):  # older ones make the form of the hook's methods
        assert form["deprecated"] == []
