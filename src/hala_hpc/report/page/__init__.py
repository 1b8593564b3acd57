"""Tables, plots and text of a report, and the formats that they are written in."""
