"""The pytest suites: fastres beside a rival, measured by turns."""
