"""How a command of the examples ends."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tdcompress.errors import CompressionError


def run_command(main: Callable[[], None]) -> None:
    """Run a command; of a `CompressionError`, which says what to change, the message alone is shown."""
    try:
        main()
    except CompressionError as error:
        sys.exit(f"error: {error}")
