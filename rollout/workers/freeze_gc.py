"""Imported last by the fork server: exempts all imported objects from garbage collection, in it and in its children.

A collection writes to each object that it visits, and a forked process must copy a page before it writes to it. There
was no collection since the fork server began (`rltrain.rollout.workers.cleanup`): imports leave hardly any garbage.
"""

from __future__ import annotations

import gc

gc.freeze()
gc.enable()
