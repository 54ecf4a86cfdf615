"""Whether an epoch got slower since another commit."""
