"""A grid of evaluations, or of trainings with evaluations, by Hydra's multirun: `aurora sweep`."""
