"""A proxy under faults for as long as one likes: `make soak`, which needs root for some of the faults.

Nothing here runs in `make test`: it takes minutes, and what it measures is written into docs/soak.md.
"""
