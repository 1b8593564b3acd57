"""``python -m hala_hpc.worker RUN``: one worker, in this process."""

import sys

from hala_hpc.worker.job import main

sys.exit(main())
