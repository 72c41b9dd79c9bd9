"""What the deployments have in common: where each one lives, and what it says when a test fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_dingconf.sandbox import Sandbox


@pytest.fixture(scope="module")
def dingtalk() -> Iterator[Sandbox]:
    """Return the DingTalk of a deployment."""
    with Sandbox() as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show how the logs of the deployment end, beside a test that failed with it."""
    report = yield
    deployment = getattr(item, "funcargs", {}).get("deployment")
    if report.failed and deployment is not None:
        report.sections += deployment.said()
    return report
