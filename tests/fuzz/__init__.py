"""Coverage-guided fuzzing of everything that reads data which is not ours: ``make fuzz MINUTES=60``."""
