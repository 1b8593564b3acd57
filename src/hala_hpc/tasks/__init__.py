"""What a run can be for: a folder for each kind of task, named by ``task.kind``, with its ``task.py`` and its craft."""
