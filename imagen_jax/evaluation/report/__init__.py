"""One page of all that evaluations of one or several runs have found, and its tables for a paper."""
