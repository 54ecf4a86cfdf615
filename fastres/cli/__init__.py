"""The command line: app.py is the program, the others a few commands each; options.py and printing.py are shared."""
