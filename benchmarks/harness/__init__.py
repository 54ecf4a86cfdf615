"""Common parts of the suites: measuring by turns, whether both sides compute the same, memory, tables."""
