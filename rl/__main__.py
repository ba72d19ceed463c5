"""`python -m rltrain` is the command `rltrain`."""

from rltrain.cli import main

raise SystemExit(main())
