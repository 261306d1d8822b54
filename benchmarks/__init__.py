"""Ratios inside one run: see README.md."""
