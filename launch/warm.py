"""What the workers' fork server has imported before a worker is wanted.

A worker needs 2 to 3 s to import torch and what goes with it; forked from a process that has done
so it needs a few milliseconds, at the first start and at each restart.

Importing starts no thread and touches no device, so that forking is safe.
"""

import torch._dynamo  # what the first optimizer would import: 1 s

import distrain.run_job

__all__ = ["distrain", "torch"]
