"""The parts of tuning: what to tune, how candidates are found, built and measured, and what the user sees of it."""
