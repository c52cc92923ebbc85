"""What can be turned into shards, a file for each kind."""
