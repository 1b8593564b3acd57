"""All ranks of a training started on their nodes, watched to the end, and what they and their nodes leave behind."""
