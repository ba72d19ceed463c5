"""Modules that end, raise, hang or read the command line when they are imported; the name of the file says which."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from harmless import Harmless

HOW = Path(__file__).stem

if HOW == "import_exits":
    sys.exit(0)
elif HOW == "import_ends":
    os._exit(0)
elif HOW == "import_killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif HOW == "import_raises":
    raise RuntimeError("no licence")
elif HOW == "import_hangs":
    time.sleep(1000)
elif HOW == "import_parses":
    argparse.ArgumentParser().parse_args()
elif HOW == "import_asks":
    input("Licence: ")


class ImportExits(Harmless):
    """sys.exit(0) at its import."""

    EXPECT = {"file": "import_exits.py", "status": 2, "says": "exit"}


class ImportEnds(Harmless):
    """os._exit(0) at its import."""

    EXPECT = {"file": "import_ends.py", "status": 2, "says": "ended|exit"}


class ImportKilled(Harmless):
    """SIGKILL at its import."""

    EXPECT = {"file": "import_killed.py", "status": 2, "says": "SIGKILL"}


class ImportRaises(Harmless):
    """Raises at its import."""

    EXPECT = {"file": "import_raises.py", "status": 1, "says": "no licence", "traceback": True}


class ImportHangs(Harmless):
    """Hangs at its import."""

    EXPECT = {"file": "import_hangs.py", "status": 2, "says": "actor-timeout", "flags": "--actor-timeout 2"}


class ImportParses(Harmless):
    """Reads sys.argv with a parser of its own at its import."""

    EXPECT = {"file": "import_parses.py"}


class ImportAsks(Harmless):
    """Reads from standard input at its import, which is empty."""

    EXPECT = {"file": "import_asks.py", "status": 1, "says": "EOFError", "traceback": True}
