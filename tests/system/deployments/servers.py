"""Throw-away servers of PostgreSQL and Redis, from the system's packages, on free ports."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg2
import redis

from system.airflow_processes import Component, DeploymentError, free_port, output_of, running

USER = "airflow"
HURRY = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")
"""Settings of a database that need not outlive a power cut."""


class Postgres:
    """A PostgreSQL cluster, once it is started; its one database is ``postgres``.

    :param command: what runs the server.
    :param port: its port.
    :param password: that of :data:`USER`.
    :param logs: the directory of its log.
    """

    def __init__(self, command: Sequence[str], port: int, password: str, logs: Path) -> None:
        self._command, self._port, self._password, self._logs = command, port, password, logs

    def start(self) -> None:
        """Start the server, and wait until it lets one in."""
        self._server = Component("postgres", self._command, dict(os.environ), self._logs)
        self._server.wait_for(self.accepts, "connection to PostgreSQL")

    def stop(self) -> None:
        """End the server, and all connections to it."""
        self._server.stop()

    def url(self, scheme: str = "postgresql+psycopg2") -> str:
        """Return its address, as SQLAlchemy writes it."""
        return f"{scheme}://{USER}:{self._password}@127.0.0.1:{self._port}/postgres"

    def rows(self, query: str, *values: object) -> list[tuple]:
        """Return what a query finds."""
        connection = psycopg2.connect(self.url("postgresql"))
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(query, values)
                return cursor.fetchall()
        finally:
            connection.close()

    def dump(self) -> str:
        """Return all that is in the database, as text."""
        return output_of([_server("pg_dump"), "--inserts", "--dbname", self.url("postgresql")])

    def accepts(self) -> bool:
        """Return whether it lets one in."""
        with suppress(psycopg2.OperationalError):
            return self.rows("SELECT 1") == [(1,)]
        return False


@contextmanager
def running_postgres(logs: Path) -> Iterator[Postgres]:
    """Make a cluster and run it for a block."""
    initdb, server = _server("initdb"), _server("postgres")
    port, secret = free_port(), secrets.token_hex(16)
    # Not where pytest keeps its files, which PostgreSQL's user may not enter.
    home = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
    try:
        password = home / "password"
        password.write_text(secret)
        as_user = _not_root(home, password)
        data, login = f"--pgdata={home / 'data'}", f"--username={USER}"
        options = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
        output_of([*as_user, initdb, data, login, f"--pwfile={password}", *options])
        settings = ("listen_addresses=127.0.0.1", f"port={port}", f"unix_socket_directories={home}", *HURRY)
        command = [*as_user, server, "-D", str(home / "data"), *(f"-c{setting}" for setting in settings)]
        postgres = Postgres(command, port, secret, logs)
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def running_redis(logs: Path) -> Iterator[str]:
    """Run a Redis that keeps nothing for a block, and give its address."""
    port, password = free_port(), secrets.token_hex(16)
    options = ["--bind", "127.0.0.1", "--port", str(port), "--requirepass", password]
    options += ["--save", "", "--appendonly", "no", "--dir", str(logs)]
    url = f"redis://:{password}@127.0.0.1:{port}/0"

    def accepts() -> bool:
        with suppress(redis.ConnectionError), redis.Redis.from_url(url) as client:
            return bool(client.ping())
        return False

    with running("redis", [_server("redis-server"), *options], dict(os.environ), logs) as server:
        server.wait_for(accepts, "connection to Redis")
        yield url


def _server(program: str) -> str:
    """Return where a server's program is: Debian keeps PostgreSQL's out of the path."""
    installed = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{program}"),
        key=lambda path: [int(number) for number in re.findall(r"\d+", path.parts[4])],
    )
    found = str(installed[-1]) if installed else shutil.which(program)
    if found is None:
        raise DeploymentError(
            f"`{program}` is missing: these tests need the servers of PostgreSQL and Redis, "
            "on Debian the packages `postgresql` and `redis-server`."
        )
    return found


def _not_root(*owned: Path) -> Sequence[str]:
    """Return what to put before a command of PostgreSQL, which root may not run; give its user the paths."""
    if os.geteuid() != 0:
        return ()
    for path in owned:
        shutil.chown(path, "postgres", "postgres")
    # Nor where its user may not be, such as below /root.
    return ("env", "--chdir=/", "setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
