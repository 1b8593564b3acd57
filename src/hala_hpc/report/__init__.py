"""Tables, plots and one page of what runs did, and of the choice between models. Run directories are only read."""
