"""Loops that never return: how their threads are led out of the old code and into the new."""
