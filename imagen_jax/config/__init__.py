"""The schema of a stage's config: every key once, with type, default, range and source; migration of older configs.

What a config describes is built in the rooms above; no other room but `cli` sees a ConfigDict.
"""
