"""A training, from a recipe to a run directory: session.py opens it, loop.py is one run, run.py starts and resumes."""
