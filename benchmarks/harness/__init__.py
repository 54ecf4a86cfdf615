"""What the suites share: measuring by turns, whether both sides compute the same, memory, tables."""
