"""A simulated DingTalk on this machine, to try DAGs, and for the demo and the tests.

It serves the documented calls over real HTTP on the loopback address, returns errors on demand, and records
every call. If DingTalk's documentation is silent, it is strict. It imports neither Airflow nor the hook::

    with Sandbox() as sandbox:
        meeting = sandbox.create_conference("All hands")
        ...  # lock it, with the connection of sandbox.connection()
        assert not sandbox.join(meeting, "latecomer")

From a shell: ``python -m airflow_provider_dingconf.sandbox``.
"""

from airflow_provider_dingconf.sandbox.faults import RESERVED, Call, Fault, Reserved
from airflow_provider_dingconf.sandbox.meetings import Conference
from airflow_provider_dingconf.sandbox.server import Sandbox
from airflow_provider_dingconf.sandbox.state import App
from airflow_provider_dingconf.sandbox.stream import Event

__all__ = ["RESERVED", "App", "Call", "Conference", "Event", "Fault", "Reserved", "Sandbox"]
