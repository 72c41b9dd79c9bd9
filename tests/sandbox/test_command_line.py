"""``python -m airflow_provider_dingconf.sandbox``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import requests

from airflow_provider_dingconf.sandbox import RESERVED, Sandbox
from airflow_provider_dingconf.sandbox.__main__ import main, parser
from airflow_provider_dingconf.sandbox.faults import listing

from .conftest import Caller

if TYPE_CHECKING:
    from collections.abc import Iterator

URL = re.compile(r"http://127\.0\.0\.1:\d+")


@contextmanager
def signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_the_connection_and_stops_when_told(stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "airflow_provider_dingconf.sandbox", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            first = process.stdout.readline()
            url = URL.search(first)
            assert url, first
            assert requests.get(url[0] + "/v1.0/x?access_token=s3cret", timeout=60).status_code == 404
            process.send_signal(stop)
            rest = process.stdout.read()
            assert process.wait(timeout=60) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()
    port = url[0].rpartition(":")[2]
    assert "AIRFLOW_CONN_DINGTALK_DEFAULT='dingtalk://http://dingsandboxapp:" in rest
    assert f"%3A{port}'" in rest
    assert f"""'{{"conn_type": "dingtalk", "host": "{url[0]}", """ in rest
    assert re.search(r"unknown: GET /v1.0/x -> 404 InvalidAction.NotFound \([0-9A-F-]{36}\)\n", rest)
    assert "s3cret" not in rest


@pytest.mark.parametrize("quiet", [True, False])
def test_it_prints_a_line_for_each_call_unless_quiet(capfd: pytest.CaptureFixture[str], quiet: bool) -> None:
    with Sandbox() as free:
        port = free.port

    def visit() -> None:
        sandbox = Sandbox(port)
        while True:
            try:
                requests.get(f"{sandbox.url}/sandbox/conferences", timeout=60)
                break
            except requests.ConnectionError:
                continue
        with Caller(sandbox) as caller:
            caller.lock("sandbox-open")
            caller.control("POST", "/faults", {"drop": True, "times": 1})
            with pytest.raises(requests.ConnectionError):
                caller.call("GET", "/\u00e9")
        os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=visit)
    with signals_restored():
        visitor.start()
        options = ["--port", str(port), "--token-lifetime", "60", *(["--quiet"] if quiet else [])]
        assert main(options) == 0
        visitor.join()
    lines = [line for line in capfd.readouterr().out.splitlines() if " -> " in line]
    assert len(lines) == (0 if quiet else 2)
    if not quiet:
        assert "lock: POST /v1.0/conference/videoConferences/sandbox-open/lock -> 400 Inv" in lines[0]
        assert "unknown: GET /%C3%A9 -> no response" in lines[1]


def test_a_taken_port_is_one_clear_line(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    with signals_restored():
        assert main(["--port", str(sandbox.port)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Port {sandbox.port}: Address already in use")


def test_the_help_lists_what_can_be_rehearsed() -> None:
    text = parser().format_help()
    for ids, rehearses in listing():
        assert ids in text
        assert rehearses in text
    assert "sandbox-90002 to sandbox-90019" in text
    assert all(re.fullmatch(r"sandbox-[A-Za-z0-9.-]+", conference_id) for conference_id in RESERVED)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "70000"],
        ["--port", "x"],
        ["--token-lifetime", "0"],
        ["--slow", "nan"],
        ["--slow", "inf"],
        ["--quota", "0"],
        ["--calls-per-second", "x"],
    ],
    ids=" ".join,
)
def test_an_argument_that_makes_no_sense_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(arguments)
    assert arguments[0] in capsys.readouterr().err
