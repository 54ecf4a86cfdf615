"""Measuring against the machine: `fastres bench roofline`, and the timing that `benchmarks/` shares with it.

timing.py and ceilings.py need torch alone; norms.py, training.py and step_parts.py are what is timed; roofline.py
measures and roofline_page.py shows; machine_code*.py compile the kernels for GPUs that are not there.
"""
