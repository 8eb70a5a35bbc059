"""What the rest stands on: checks, and what torch does not offer by itself."""
