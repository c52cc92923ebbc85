"""From a source to a data set: two passes by several processes, whole or not at all."""
