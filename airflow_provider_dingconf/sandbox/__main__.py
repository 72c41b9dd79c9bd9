"""The sandbox from a shell: ``python -m airflow_provider_dingconf.sandbox``."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from airflow_provider_dingconf.sandbox.reserved import listing
from airflow_provider_dingconf.sandbox.server import Sandbox
from airflow_provider_dingconf.sandbox.state import TOKEN_LIFETIME, Call
from airflow_provider_dingconf.sandbox.stream import REDELIVERY

if TYPE_CHECKING:
    from collections.abc import Sequence

PORT: Final = 8790
_LAST_PORT: Final = 65535


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    rows = "\n".join(f"  {ids}\n      {rehearses}" for ids, rehearses in listing())
    made = argparse.ArgumentParser(
        prog="python -m airflow_provider_dingconf.sandbox",
        description="A DingTalk on this machine, on the loopback address only.",
        epilog=f"meeting ids that always behave the same way:\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--port",
        type=_port,
        default=PORT,
        metavar="N",
        help="port to listen on, 0 for any free one (%(default)s)",
    )
    made.add_argument(
        "--token-lifetime",
        type=_seconds,
        default=TOKEN_LIFETIME,
        metavar="SECONDS",
        help="lifetime of an access token (%(default)g)",
    )
    made.add_argument(
        "--slow",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="time after which sandbox-slow answers (%(default)g)",
    )
    made.add_argument(
        "--redelivery",
        type=_seconds,
        default=REDELIVERY,
        metavar="SECONDS",
        help="time after which an event that was not acknowledged is delivered again (%(default)g)",
    )
    made.add_argument("--quiet", action="store_true", help="do not print a line for each call")
    return made


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"not a port: {text}")
    return port


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"not a time: {text}")
    return seconds


def welcome(sandbox: Sandbox) -> str:
    """Return what a user needs to start: the address, and the connection to copy."""
    return f"""\
DingTalk sandbox on {sandbox.url} (Ctrl+C stops it)

The Airflow connection, as a URI:
  export AIRFLOW_CONN_DINGTALK_DEFAULT='{sandbox.connection_uri()}'
or as JSON:
  export AIRFLOW_CONN_DINGTALK_DEFAULT='{sandbox.connection_json()}'

Lock the meeting sandbox-open; --help lists the meeting ids that rehearse errors.
"""


def line(call: Call) -> str:
    """Return one line about a call, without its query, headers and body: these can hold secrets."""
    path = call.path.partition("?")[0].encode("ascii", "backslashreplace").decode()
    answer = f"{call.status} {call.code or ''}".rstrip() if call.status else "no answer"
    return f"{time.strftime('%H:%M:%S')} {call.name}: {call.method} {path} -> {answer} ({call.request_id})"


def _log(call: Call) -> None:
    # A reader that went away, as in `… | head`, must not break the calls.
    with suppress(OSError):
        print(line(call), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sandbox until the process is told to stop, and return the exit status."""
    options = parser().parse_args(argv)
    for stop in (signal.SIGINT, signal.SIGTERM):
        # A shell starts a background job with SIGINT ignored: ask for it.
        signal.signal(stop, signal.default_int_handler)
    sandbox = Sandbox(
        options.port,
        token_lifetime=options.token_lifetime,
        slow=options.slow,
        redelivery=options.redelivery,
        on_call=(lambda _call: None) if options.quiet else _log,
    )
    try:
        with sandbox:
            print(welcome(sandbox), flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    except OSError as error:
        print(f"Port {options.port}: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
