"""From a job to processes: the `distrain` command, local workers, machines and clusters."""
