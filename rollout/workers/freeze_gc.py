"""Imported last by the fork server: what was imported is left alone by garbage collection, here and in every child.

A collection writes to each object it visits, and a forked process that writes to a page must copy it first.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
