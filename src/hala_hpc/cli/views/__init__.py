"""What commands show, where it takes more than a few lines."""
