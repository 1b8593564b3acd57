"""Judge rows: rules first, then a model's verdict as an expected value."""
