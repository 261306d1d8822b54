"""Is the port good enough to get more? Statistics, judgement, and the hand on the flag file."""
