"""Many seeds of one recipe in one process, compiled once."""
