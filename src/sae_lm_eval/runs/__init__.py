"""Many models or variants in one job that can be continued, and the folders that it writes."""
