"""What the fork server imports once, so that the processes that it forks start at once."""

import data_pipeline.conversion.sharding
import data_pipeline.conversion.staging

__all__ = ["data_pipeline"]
