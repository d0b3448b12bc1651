"""Blind comparisons of two models: a page on which people vote, and the count of their votes."""
