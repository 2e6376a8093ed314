"""Tokens to texts, many at a time. scheduler.py is the way in."""
