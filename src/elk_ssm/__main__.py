"""`python -m elk_ssm` is `elk-ssm`."""

import sys

from elk_ssm.cli import main

sys.exit(main())
