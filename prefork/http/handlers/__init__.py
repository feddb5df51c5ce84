"""Handlers and replies built on the public API."""
