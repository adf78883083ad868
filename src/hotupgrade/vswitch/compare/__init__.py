"""The ways to bring a new build into a virtual switch, side by side on the same traffic."""
