"""The parts of a report, each from what runs have left."""
