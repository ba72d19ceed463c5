"""`python -m rltrain` is the command `rltrain`, and imports from the same folders."""

import os
import sys

if sys.path[:1] == [os.getcwd()]:  # added by `python -m`: what a data file names must not be found there
    del sys.path[0]

from rltrain.cli import main

raise SystemExit(main())
