"""Transcoding: another container for what browsers cannot play."""
