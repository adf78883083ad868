"""What is particular to Open vSwitch: a private switch under load, its statistics, its baselines, the demonstration.

The engine never imports this package.
"""
