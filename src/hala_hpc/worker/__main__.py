import sys

from hala_hpc.worker.main import main

sys.exit(main())
