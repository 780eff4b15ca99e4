"""`python -m kdkit`."""

import sys

from kdkit.terminal.command import main

sys.exit(main())
