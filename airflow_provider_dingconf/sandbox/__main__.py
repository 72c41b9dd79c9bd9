"""The sandbox from a shell: ``python -m airflow_provider_dingconf.sandbox``."""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final

from pydantic import Field, FiniteFloat, PositiveInt, TypeAdapter, ValidationError

from airflow_provider_dingconf.sandbox.faults import Call, listing
from airflow_provider_dingconf.sandbox.server import Sandbox
from airflow_provider_dingconf.sandbox.state import REDELIVERY, TOKEN_LIFETIME


def _read(kind: Any) -> Callable[[str], Any]:
    """Return a function that reads a value of a type from the command line."""

    def read(text: str) -> Any:
        try:
            return TypeAdapter(kind).validate_python(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from None

    return read


_SECONDS: Final = Annotated[FiniteFloat, Field(gt=0)]
_PORT: Final = Annotated[int, Field(ge=0, le=65535)]
_OPTIONS: Final = (
    ("port", "N", _PORT, 8790, "port to listen on, 0 for any free one (%(default)s)"),
    ("token-lifetime", "SECONDS", _SECONDS, TOKEN_LIFETIME, "lifetime of an access token (%(default)g)"),
    ("slow", "SECONDS", _SECONDS, 5.0, "time until sandbox-slow gets its response (%(default)g)"),
    ("redelivery", "SECONDS", _SECONDS, REDELIVERY, "time until an event is delivered again (%(default)g)"),
    ("quota", "N", PositiveInt, None, "calls until the organisation's quota is used up (no limit)"),
    ("calls-per-second", "N", PositiveInt, None, "calls a second of one app to one API (no limit)"),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    rows = "\n".join(f"  {ids}\n      {rehearses}" for ids, rehearses in listing())
    found = argparse.ArgumentParser(
        prog="python -m airflow_provider_dingconf.sandbox",
        description="A DingTalk on this machine, on the loopback address only.",
        epilog=f"meeting ids that always behave the same way:\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, metavar, kind, default, text in _OPTIONS:
        found.add_argument(f"--{name}", metavar=metavar, type=_read(kind), default=default, help=text)
    found.add_argument("--quiet", action="store_true", help="print no line for each call")
    return found


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


def _log(call: Call) -> None:
    """Print one line about a call, without its query, headers and body, which can hold secrets."""
    path = call.path.partition("?")[0].encode("ascii", "backslashreplace").decode()
    response = f"{call.status} {call.code or ''}".rstrip() if call.status else "no response"
    # A reader that went away, as in `… | head`, must not break the calls.
    with suppress(OSError):
        clock = time.strftime("%H:%M:%S")
        print(f"{clock} {call.name}: {call.method} {path} -> {response} ({call.request_id})", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sandbox until a signal stops the process, and return the exit status."""
    options = vars(parser().parse_args(argv))
    on_call = None if options.pop("quiet") else _log
    for stop in (signal.SIGINT, signal.SIGTERM):
        # A shell starts a background job with SIGINT ignored.
        signal.signal(stop, signal.default_int_handler)
    try:
        with Sandbox(**options, on_call=on_call) as sandbox:
            print(welcome(sandbox), flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    except OSError as error:
        print(f"Port {options['port']}: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
