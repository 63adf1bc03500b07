"""Publish a finished run: its card, the check before a push, and the push itself."""
