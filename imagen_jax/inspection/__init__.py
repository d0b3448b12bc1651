"""Statistics of a data set before training: unreadable records, sizes, captions, near duplicates.

Reading the data set is the job of `datasets` and `data`.
"""
