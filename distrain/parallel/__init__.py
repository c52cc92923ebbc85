"""How many workers make one result."""
