"""Several machines, one run."""
