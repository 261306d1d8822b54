"""Replays of requests on the side that did not answer, and what they show."""
