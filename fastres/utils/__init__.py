"""Utilities that are independent of training: files and locks, the machine, terminals, signals, statistics, formats."""
