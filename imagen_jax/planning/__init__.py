"""Memory and speed estimates of a run on TPUs that are not attached, from programs compiled ahead of time.

Only its command imports this room; the planned programs are those of the rooms that run them.
"""
