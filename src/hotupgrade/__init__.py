"""Upgrade a running Linux process to a newer build of its code, without restarting it."""

__version__ = "0.1.0"
