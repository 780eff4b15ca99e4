"""`python -m kdkit`."""

import sys

from kdkit.terminal.command import main

for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="replace")  # type: ignore[union-attr]
sys.exit(main())
