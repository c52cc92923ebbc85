"""The contestants of `benchmarks.data_loading`, one room a library, and what they all are given."""
