"""Arms times regimes times seeds, tuned alike, and what their differences show."""
