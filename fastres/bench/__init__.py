"""Measuring: `fastres bench pareto` and `fastres bench roofline`, and the timing that `benchmarks/` shares with them.

timing.py and ceilings.py need torch alone; norms.py, ours.py and step_parts.py are what is timed; pareto*.py and
roofline*.py are the two commands, each from measuring to a page; records.py has what others published.
"""
