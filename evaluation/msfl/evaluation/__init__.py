"""Lesion metrics, figures and the report of a run.

`metrics` and `overlay` also travel inside releases to the sites, so they import nothing of msfl.
"""
