"""The `imagen` commands: each parses its flags, calls one library function and prints the result.

This is the only room that knows absl flags, `print` and exit codes; the work itself is done in the rooms below.
"""
