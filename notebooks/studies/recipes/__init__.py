"""The study of recipes (notebook 21): which training of which network comes furthest, and how
soon.
"""
