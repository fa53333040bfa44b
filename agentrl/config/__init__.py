"""Settings: their sections with meanings and ranges, and how they are read from files and flags."""
