"""All operators and sections, for a DAG file.

A DAG file that imports this module imports neither the hook nor an HTTP library: the hook is made when the
task runs.
"""

from __future__ import annotations

from airflow_provider_dingconf.call_operator import DingTalkOperator
from airflow_provider_dingconf.lock_operators import LockConferenceOperator, UnlockConferenceOperator
from airflow_provider_dingconf.meeting_operators import (
    CloseConferenceOperator,
    ConferenceMembersOperator,
    CreateConferenceOperator,
)
from airflow_provider_dingconf.sections import ConferenceSection, LockedSection, conference, conference_lock

__all__ = [
    "CloseConferenceOperator",
    "ConferenceMembersOperator",
    "ConferenceSection",
    "CreateConferenceOperator",
    "DingTalkOperator",
    "LockConferenceOperator",
    "LockedSection",
    "UnlockConferenceOperator",
    "conference",
    "conference_lock",
]
