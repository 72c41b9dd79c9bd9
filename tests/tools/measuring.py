"""What the benches share: a sandbox to call, and the rows of their table."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

from demo import ask, environment, sandbox


class Row(NamedTuple):
    """Two measurements, their unit, and the most that their ratio may be."""

    what: str
    one: float
    other: float
    unit: str
    goal: float | None = None


def report(rows: Iterable[Row]) -> None:
    """Print rows as they are measured."""
    for what, one, other, unit, goal in rows:
        ratio = one / other
        aim = "-" if goal is None else f"at most {goal:.4g}"
        met = "" if goal is None else "met" if round(ratio, 3) <= goal else "MISSED"
        print(
            f"{what:<52}{one:>9.4g}{other:>9.4g} {unit:<6}{ratio:>7.3f}  {aim:<14}{met}".rstrip(), flush=True
        )


@contextmanager
def connected(*options: str) -> Iterator[str]:
    """Run a sandbox for a block, let the default connection lead to it, and give its address.

    The logs go where Airflow's task runner sends them: as JSON, into a file.

    :param options: of the sandbox's command line.
    """
    with (
        tempfile.TemporaryDirectory(prefix="dingconf-bench-") as home,
        sandbox(Path(home, "sandbox.log"), "--quiet", *options) as url,
    ):
        before, of_airflow = dict(os.environ), environment(Path(home), url)
        try:
            tempfile.tempdir = home
            os.environ.clear()
            os.environ.update(of_airflow)
            _log_as_a_task_does(Path(home, "task.log"))
            yield url
        finally:
            tempfile.tempdir = None
            os.environ.clear()
            os.environ.update(before)


def _log_as_a_task_does(log: Path) -> None:
    from airflow.sdk.log import configure_logging

    output = log.open("wb")
    configure_logging(json_output=True, output=output, sending_to_supervisor=True)
    sys.excepthook = sys.__excepthook__  # an error of this program is for the screen


def control(url: str, method: str, path: str, **body: Any) -> None:
    """Make a call of the sandbox's control interface."""
    request = Request(f"{url}/sandbox/{path}", json.dumps(body).encode(), method=method)  # noqa: S310
    build_opener(ProxyHandler({})).open(request, timeout=10).close()


def make_meetings(url: str, number: int) -> list[str]:
    """Create running meetings, and return their ids."""
    ids = [f"m-{each}" for each in range(number)]
    for conference_id in ids:
        control(url, "POST", "conferences", conference_id=conference_id)
    return ids


def calls_of(url: str, work: Callable[[], Any], times: int = 1) -> int:
    """Do some work so many times, and return how many calls the sandbox received."""
    before = len(ask(url, "calls"))
    for _ in range(times):
        work()
    return len(ask(url, "calls")) - before


def seconds(work: Callable[[], Any]) -> float:
    """Return how long some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
