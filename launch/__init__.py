"""From a job to processes: the `distrain` command and local workers."""
