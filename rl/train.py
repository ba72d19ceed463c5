"""`python -m rltrain.train`: the same as the command `rltrain`; torchrun starts a module in each process."""

from __future__ import annotations

if __name__ == "__main__":
    from rltrain.cli import main

    raise SystemExit(main())
