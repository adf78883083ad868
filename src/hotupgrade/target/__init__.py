"""The live process: its memory, modules and threads, the agent within it and the stop.  Knows no plan."""
