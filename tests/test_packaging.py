"""What an installation brings: one version, the provider as Airflow sees it, and the types."""

from __future__ import annotations

from importlib.metadata import metadata, version
from importlib.resources import files as resources

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import airflow_provider_dingconf

NAME = "airflow-provider-dingconf"


def test_the_version_is_the_same_everywhere() -> None:
    assert version(NAME) == airflow_provider_dingconf.__version__
    assert Version(version(NAME)) >= Version("0.1.0")


def test_airflow_finds_the_provider_and_its_connection_type() -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert manager.providers[NAME].version == airflow_provider_dingconf.__version__
    assert manager.providers[NAME].data["package-name"] == NAME
    hook = manager.hooks["dingtalk"]
    assert hook is not None
    assert hook.hook_name == "DingTalk"
    assert hook.package_name == NAME


@pytest.mark.parametrize(
    "requirement", map(Requirement, metadata(NAME).get_all("Requires-Dist") or ()), ids=str
)
def test_what_is_installed_is_what_the_package_asks_for(requirement: Requirement) -> None:
    assert version(requirement.name) in requirement.specifier


def test_the_types_are_shipped() -> None:
    assert resources(airflow_provider_dingconf).joinpath("py.typed").is_file()
