"""A file system of our own, by FUSE: it remembers what was not yet durable, and fails as it is told to.

``server`` is the process that serves it, ``mount`` starts it, ``journal`` says what a disk may hold after a power cut.
"""

MARK, FAULTS = ".mark", ".faults"
"""Names in its root that only the tests know (see ``server``)."""
