"""Fuzzing of the rooms that read what strangers send: a target a room, and a kept corpus of inputs for each.

A target is a function of bytes that raises AssertionError when the room and a plain second reading of the same bytes
differ. `make fuzz` looks for such bytes, guided by coverage; `make test` tries those that are kept.
"""
