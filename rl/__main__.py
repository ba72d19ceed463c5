"""`python -m rltrain`: the same as the command `rltrain`."""

from rltrain.cli import main

raise SystemExit(main())
