"""``python -m hala_hpc.worker RUN``: one worker."""

import sys

from hala_hpc.worker.job import main

sys.exit(main(sys.argv[1:]))
