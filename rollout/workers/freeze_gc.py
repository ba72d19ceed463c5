"""Imported last by the fork server: exempts all imported objects from garbage collection, in it and in its children.

A collection writes to each object that it visits, and a forked process must copy a page before it writes to it.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
