"""The targets of sd-mini, which draws what a prompt says: likeness on shares, its settings in plaintext, and what a step costs.

Bounds are those that the project set itself, not what was found.
"""
