"""`python -m rltrain.train`, the module that torchrun starts: the same as the command `rltrain`.

Where it is imported as `rltrain.train`, that name stays the function `rltrain.training_loop.train`.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from rltrain.cli import main

    raise SystemExit(main())

from rltrain.training_loop import train

sys.modules[__name__] = train  # type: ignore[assignment]  # the import system binds this to `rltrain.train`
