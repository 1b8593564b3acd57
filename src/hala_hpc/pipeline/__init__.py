"""From a recipe to a run and its jobs, for one run and for a grid of them."""
