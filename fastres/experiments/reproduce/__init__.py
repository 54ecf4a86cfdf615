"""`fastres reproduce`: the claims of the report beside what was measured.

claims.py is the table of claims, quantities.py what is measured of them, verdicts.py the rule that decides. plan.py
says which runs that takes, scaling.py how `--scale` shortens them; run.py trains what is missing, results.py reads it,
and page.py writes what came out.
"""
