"""TODO fastres.training.run"""
