"""What the module of triggers gives on each version of Airflow."""

from __future__ import annotations

import pytest
from airflow import __version__ as airflow_version

from airflow_provider_dingconf import triggers


@pytest.mark.skipif(not airflow_version.startswith("2."), reason="Airflow 3 has what it needs")
@pytest.mark.parametrize("name", ["ConferenceEventTrigger", "triggering_conferences"])
def test_the_error_on_an_older_airflow_names_the_version_that_is_needed(name: str) -> None:
    with pytest.raises(ImportError, match=r"needs Airflow 3\.0 or later; this is Airflow 2\.11"):
        getattr(triggers, name)


def test_a_misspelt_trigger_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="ConferenceEventTriger"):
        triggers.ConferenceEventTriger  # noqa: B018
