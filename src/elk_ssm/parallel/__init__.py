"""Where time lives, and the one driver that runs recursions through it."""
