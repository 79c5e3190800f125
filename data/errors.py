"""The one error of the data scripts, and how a script ends with it."""

import sys
from collections.abc import Callable


class DataError(Exception):
    """Input that cannot be used. The message is one sentence that names the file, line or key and the reason."""


def exit_with_sentence(main: Callable[[], None]) -> None:
    """Run `main`; on a DataError print its sentence to stderr and exit with code 2.

    What a terminal cannot show, such as a byte in a file's name that is no character, is printed escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
