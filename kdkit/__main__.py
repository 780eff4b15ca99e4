"""`python -m kdkit`."""

import os
import sys

from kdkit.terminal.command import main

for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="replace")  # type: ignore[union-attr]
code = main()
try:
    sys.stdout.flush()
except BrokenPipeError:  # whoever reads it has ended; Python would write the rest when it ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
sys.exit(code)
