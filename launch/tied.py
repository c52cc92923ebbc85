"""Ties the fork server to its launcher: imported there, before all that takes time.

It ends when its launcher does, however that ends, and its workers with it.
"""

import os

from launch.parent import LAUNCHER, die_with_parent

FORK_SERVER = os.getpid()
"""The process that has imported this first: in a worker, the one that it was forked from."""

if LAUNCHER in os.environ:
    die_with_parent(int(os.environ.pop(LAUNCHER)))
