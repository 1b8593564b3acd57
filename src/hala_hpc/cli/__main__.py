"""``python -m hala_hpc.cli`` is ``hala``."""

from hala_hpc.cli.main import main

main()
