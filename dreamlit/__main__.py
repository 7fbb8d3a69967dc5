"""`python -m dreamlit` is the command `dreamlit`."""

import sys

from dreamlit.cli import main

sys.exit(main())
