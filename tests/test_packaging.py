"""What an installation brings: one version, and the provider as Airflow sees it."""

from __future__ import annotations

from importlib.metadata import version

from airflow_provider_dingconf import __version__

NAME = "airflow-provider-dingconf"


def test_the_version_is_the_same_everywhere() -> None:
    assert version(NAME) == __version__


def test_airflow_finds_the_provider_and_its_connection_type() -> None:
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()
    assert manager.providers[NAME].version == __version__
    hook = manager.hooks["dingtalk"]
    assert hook is not None
    assert (hook.package_name, hook.hook_name) == (NAME, "DingTalk")
