"""Tools round a run: what it will take, and what it did."""
