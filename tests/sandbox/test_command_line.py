"""``python -m airflow_provider_dingconf.sandbox``."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest
import requests

from airflow_provider_dingconf.sandbox import RESERVED, Sandbox
from airflow_provider_dingconf.sandbox.__main__ import main
from airflow_provider_dingconf.sandbox.faults import listing

from .conftest import CONFERENCES

URL = re.compile(r"http://127\.0\.0\.1:\d+")


@pytest.fixture
def signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_it_prints_the_connection_and_a_line_for_a_call_without_secrets() -> None:
    command = [sys.executable, "-m", "airflow_provider_dingconf.sandbox", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        try:
            first = process.stdout.readline()
            url = URL.search(first)
            assert url, first
            assert requests.get(url[0] + "/v1.0/x?access_token=s3cret", timeout=60).status_code == 404
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            assert (process.wait(timeout=60), process.stderr.read()) == (0, "")
        finally:
            process.kill()
    port = url[0].rpartition(":")[2]
    assert "AIRFLOW_CONN_DINGTALK_DEFAULT='dingtalk://http://dingsandboxapp:" in rest
    assert f"%3A{port}'" in rest
    assert f"""'{{"conn_type": "dingtalk", "host": "{url[0]}", """ in rest
    assert re.search(r"unknown: GET /v1.0/x -> 404 InvalidAction.NotFound \([0-9A-F-]{36}\)\n", rest)
    assert "s3cret" not in rest


@pytest.mark.parametrize("quiet", [True, False])
def test_it_prints_a_line_for_each_call_unless_quiet(signals_restored: None, quiet: bool) -> None:
    def visit(url: str) -> None:
        try:
            requests.post(f"{url}{CONFERENCES}/sandbox-open/lock", json={"action": "lock"}, timeout=60)
            requests.post(f"{url}/sandbox/faults", json={"drop": True, "times": 1}, timeout=60)
            with pytest.raises(requests.ConnectionError):
                requests.get(f"{url}/\u00e9", timeout=60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            if url := URL.search(text):
                threading.Thread(target=visit, args=(url[0],)).start()
            return super().write(text)

    options = ["--port", "0", "--token-lifetime", "60", *["--quiet"] * quiet]
    with redirect_stdout(Screen()) as screen:
        assert main(options) == 0
    lines = [line for line in screen.getvalue().splitlines() if " -> " in line]
    assert len(lines) == (0 if quiet else 2)
    if not quiet:
        assert "lock: POST /v1.0/conference/videoConferences/sandbox-open/lock -> 400 Auth" in lines[0]
        assert "unknown: GET /%C3%A9 -> no response" in lines[1]


def test_a_port_in_use_is_one_clear_line(signals_restored: None, sandbox: Sandbox, capsys: Any) -> None:
    assert main(["--port", str(sandbox.port)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Port {sandbox.port}: Address already in use")


def test_the_help_lists_what_can_be_rehearsed(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert not [row for row in listing() if not all(part in text for part in row)]
    assert "sandbox-90002 to sandbox-90019" in text
    assert all(re.fullmatch(r"sandbox-[A-Za-z0-9.-]+", conference_id) for conference_id in RESERVED)


@pytest.mark.parametrize(
    "arguments",
    ["--port 70000", "--port x", "--token-lifetime 0", "--slow nan", "--slow inf", "--quota 0", "--calls-per-second x"],
)  # fmt: skip
def test_an_invalid_argument_is_refused_by_name(arguments: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(arguments.split())
    assert f"error: argument {arguments.partition(' ')[0]}: Input should be" in capsys.readouterr().err
