"""What a run costs: FLOPs and memory predicted, speed measured. Nothing here is needed to train."""
