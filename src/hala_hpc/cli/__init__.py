"""Commands: each a few lines that call the rooms below. A command is imported when it is asked for."""
