"""The typed recipe and site: what a person may ask for, and errors that name the key, the file and the choices."""
