"""Run ``python -m latticeq`` as the ``latticeq`` command."""

import sys

from latticeq.cli.main import main

sys.exit(main())
