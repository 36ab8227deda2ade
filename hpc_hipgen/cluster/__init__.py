"""Where and when stages run: the site description, submitit executors, rendezvous of ranks.

Nothing here knows what a stage does, and no stage knows what is here.
"""
