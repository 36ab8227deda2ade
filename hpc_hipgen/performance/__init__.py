"""What a run costs: FLOPs and memory predicted, speed measured. Nothing here is needed to train."""

PLANNED = ("stable_diffusion", "llcm")
"""Sections whose training can be planned."""
