"""What a training takes of a GPU, worked out from the form of its model before anything runs."""
