"""Training methods beyond labels on freshly drawn networks, each over the same step: transfer.py decides what a network
starts from, distillation.py adds a teacher to its loss, pseudo_label.py adds images in rounds. dino.py and emp_ssl.py
learn features without labels (self_supervised.py has what they share), and probe.py says how good features are."""
