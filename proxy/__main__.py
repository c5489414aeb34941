"""`python -m proxy` is `c8y-realtime-proxy`."""

import sys

from proxy.cli import main


sys.exit(main())
