"""What workers write: kept by rank and start, shown in whole lines."""
