"""The parts of a real deployment as child processes: started, waited for, and ended by their pids.

Each component has its own process group and log. Every wait polls, gives up after a generous time, and
then says what it waited for and how the log ends.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import psutil

PATIENCE = 180
"""Seconds: how long anything may take, on the slowest of machines."""

BIN = Path(sys.executable).parent
"""Where this environment's commands are."""

T = TypeVar("T")


class DeploymentError(AssertionError):
    """Raised when a component ended by itself, or something awaited did not come."""


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(condition: Callable[[], T], what: str, seconds: float = PATIENCE, every: float = 0.2) -> T:
    """Wait until a condition is true, and return its value.

    :param condition: an assertion that fails in it counts as false.
    :param what: what is awaited, for the error.
    """
    until = time.monotonic() + seconds
    while True:
        why = ""
        try:
            if value := condition():
                return value
        except DeploymentError:
            raise
        except AssertionError as error:
            why = f": {error}"
        if time.monotonic() > until:
            raise DeploymentError(f"after {seconds:.0f} s, still no {what}{why}")
        time.sleep(every)


def responds(url: str) -> bool:
    """Return whether an HTTP address responds at all, without a proxy of the environment."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=5):
            return True
    except URLError as error:
        return hasattr(error, "code")
    except OSError:
        return False


class Component:
    """One process of a deployment, and all that it starts.

    :param name: its name, and that of its log file.
    :param command: what to run.
    :param env: its whole environment.
    :param logs: the directory of its log, to which a component that is started again adds.
    """

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str], logs: Path) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        logs.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """The whole log."""
        return self.log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
        """Wait until a condition is true, as long as the component runs; see :func:`wait_for`."""

        def value() -> T:
            if ended := self._ended():
                raise DeploymentError(f"{self.name} ended with status {ended.si_status}")
            return condition()

        try:
            return wait_for(value, what, seconds)
        except DeploymentError as error:
            end = f"--- the end of {self.log}\n{self.output[-3000:]}"
            raise DeploymentError(f"{error}\n{end}") from None

    def wait_for_address(self, url: str, seconds: float = PATIENCE) -> None:
        """Wait until the component responds at an HTTP address."""
        self.wait_for(lambda: responds(url), f"response from {self.name} at {url}", seconds)

    def wait_for_line(self, text: str, seconds: float = PATIENCE) -> str:
        """Wait until the log has a line with this text, and return that line."""

        def line() -> str:
            return next((line for line in self.output.splitlines() if text in line), "")

        return self.wait_for(line, f"line of {self.name} with {text!r}", seconds)

    def stop(self, seconds: float = 20) -> None:
        """End the component and all that it started: by SIGTERM, or by SIGKILL if that is not enough."""
        if self.process.returncode is not None:
            return
        children = self._children()
        os.killpg(self.pid, signal.SIGTERM)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.terminate()
        until = time.monotonic() + seconds
        _, alive = psutil.wait_procs(children, timeout=seconds)
        with suppress(DeploymentError):
            wait_for(self._ended, f"end of {self.name}", seconds=until - time.monotonic(), every=0.05)
        self._kill(alive)

    def kill(self) -> None:
        """Kill the component and all that it started."""
        if self.process.returncode is None:
            self._kill(self._children())

    @property
    def has_ended(self) -> bool:
        """Whether the component has ended, by itself or not."""
        return self.process.returncode is not None or self._ended() is not None

    def _ended(self) -> os.waitid_result | None:
        """Return how the process ended, if it has, and leave its pid to it: no other process gets it."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def _children(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.pid).children(recursive=True))
        return []

    def _kill(self, children: list[psutil.Process]) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.wait()


@contextmanager
def running(name: str, command: Sequence[str], env: dict[str, str], logs: Path) -> Iterator[Component]:
    """Run a component for a block; parameters are those of :class:`Component`."""
    component = Component(name, command, env, logs)
    try:
        yield component
    finally:
        component.stop()


def environment(home: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a throw-away Airflow, without the caller's settings of Airflow and proxies.

    :param home: its home directory.
    :param settings: more variables.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW", "PYTHONDONTWRITE")) and not name.lower().endswith("_proxy")
    }
    return {
        **kept,
        # Airflow starts parts of itself as `airflow ...`.
        "PATH": f"{BIN}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        **settings,
    }


def output_of(command: Sequence[str], env: dict[str, str] | None = None, seconds: float = PATIENCE) -> str:
    """Run a command to its end, and return what it printed; it has to succeed.

    :param env: its whole environment, or that of this process.
    """
    done = subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        raise DeploymentError(f"`{shlex.join(command)}` failed:\n{done.stdout}\n{done.stderr}"[-6000:])
    return done.stdout


def airflow(*arguments: str, env: dict[str, str]) -> str:
    """Run one of Airflow's commands to its end, and return what it printed."""
    return output_of([sys.executable, "-m", "airflow", *arguments], env)
