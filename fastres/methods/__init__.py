"""Training methods beyond labels on freshly drawn networks, each over the same step: transfer.py decides what a network
starts from, distill.py adds a teacher to its loss."""
