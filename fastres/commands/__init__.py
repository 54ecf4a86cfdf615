"""Groups of commands below `fastres`, and what all commands share: their options, and how they print."""
