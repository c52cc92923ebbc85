"""What the workers' fork server has imported before a worker is wanted.

A worker needs 2 to 3 s to import torch and what goes with it; forked from a process that has done
so it needs a few milliseconds, at the first start and at each restart. To import this module is the
fork server's part, and nobody else's: from then on the process ends with the one that started it.

Importing starts no thread and touches no device, so that forking is safe.
"""

import torch._dynamo  # what the first optimizer would import: 1 s

import distrain.run_job
from launch.parent import die_with_parent

die_with_parent()

__all__ = ["distrain", "torch"]
