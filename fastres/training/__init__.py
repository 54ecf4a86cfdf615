"""A training, from its recipe to its run directory: session.py opens it, loop.py is one run, run.py starts and resumes."""
