"""What knows nothing of training: files and locks, the machine, terminals, signals, statistics, formats."""
