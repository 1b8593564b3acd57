"""A model is trained on a mixture of datasets: tokens, order, launch, ranks, checkpoints, export, estimates."""
