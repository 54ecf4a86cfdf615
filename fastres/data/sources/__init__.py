"""Sources: what a user names, told apart and read."""
