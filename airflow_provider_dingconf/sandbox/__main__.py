"""The sandbox from a shell: ``python -m airflow_provider_dingconf.sandbox``."""

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Final

from pydantic import Field, FiniteFloat, PositiveInt, TypeAdapter, ValidationError

from airflow_provider_dingconf.sandbox.faults import Call, listing
from airflow_provider_dingconf.sandbox.server import Sandbox

_PORT: Final = Annotated[int, Field(ge=0, le=65535)]
_SECONDS: Final = Annotated[FiniteFloat, Field(gt=0)]
_OPTIONS: Final = (
    ("port", "N", _PORT, "port to listen on, 0 for any free one"),
    ("token-lifetime", "SECONDS", _SECONDS, "lifetime of an access token"),
    ("slow", "SECONDS", _SECONDS, "time until sandbox-slow gets its response"),
    ("redelivery", "SECONDS", _SECONDS, "time until an event is delivered again"),
    ("quota", "N", PositiveInt, "calls until the organisation's quota is used up"),
    ("calls-per-second", "N", PositiveInt, "calls a second of one app to one API"),
)


def _read(kind: Any, text: str) -> Any:
    """Return a value from the command line as a type."""
    try:
        return TypeAdapter(kind).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from None


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    rows = "\n".join(f"  {ids}\n      {rehearses}" for ids, rehearses in listing())
    found = argparse.ArgumentParser(
        prog="python -m airflow_provider_dingconf.sandbox",
        description="A simulated DingTalk on this machine, on the loopback address only.",
        epilog=f"meeting ids that always behave the same way:\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, metavar, kind, about in _OPTIONS:
        default = 8790 if name == "port" else getattr(Sandbox, name.replace("-", "_"))
        text = f"{about} ({'no limit' if default is None else '%(default)g'})"
        read = partial(_read, kind)
        found.add_argument(f"--{name}", metavar=metavar, type=read, default=default, help=text)
    found.add_argument("--quiet", action="store_true", help="print no line for each call")
    return found


def welcome(sandbox: Sandbox) -> str:
    """Return the text that a user needs first: the address, and the connection to copy."""
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
        with suppress(KeyboardInterrupt), Sandbox(**options, on_call=on_call) as sandbox:
            print(welcome(sandbox), flush=True)
            threading.Event().wait()
    except OSError as error:
        print(f"Port {options['port']}: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
