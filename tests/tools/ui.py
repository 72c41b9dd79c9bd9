"""``make ui``: an Airflow to look at in the browser, with the example DAGs and a connection to a sandbox.

It runs until Ctrl+C or SIGTERM, and leaves nothing behind.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from demo import DemoError, connection, sandbox

sys.path.insert(0, str(Path(__file__).parents[1]))

from system.airflow_api import USER
from system.airflow_processes import DeploymentError
from system.ui.standalone import running_standalone

EXAMPLES = Path(__file__).parents[2] / "example_dags"


def stop(*_: object) -> None:
    """End the run; ignore further signals, which would leave an Airflow behind."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run until a signal comes, and return the exit status."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)
    dag_ids = sorted(path.stem for path in EXAMPLES.glob("example_*.py"))
    print(f"Airflow {version('apache-airflow')} starts; this takes half a minute.", flush=True)
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="dingconf-ui-") as directory:
        home = Path(directory)
        try:
            with sandbox(home / "sandbox.log") as url, running_standalone(home, EXAMPLES) as airflow:
                # With the port once more: see the connection type's placeholder for it.
                airflow.connect({**connection(url), "port": int(url.rpartition(":")[2])})
                airflow.wait_for_dags(*dag_ids)
                print(
                    f"\n  Airflow   {airflow.url}"
                    f"\n  login     {USER}"
                    f"\n  password  {airflow.password}"
                    f"\n\nThe connection dingtalk_default leads to the DingTalk sandbox on {url}."
                    "\nTo begin with, run example_sandbox_tour, or example_lock_conference with the conference"
                    " id sandbox-open."
                    "\nCtrl+C ends it all.",
                    flush=True,
                )
                threading.Event().wait()
        except (DemoError, DeploymentError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
