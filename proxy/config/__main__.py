"""`python -m proxy.config schema` and `python -m proxy.config reference` write what is generated from the tree."""

import sys

from proxy.config.reference import reference, schema


print({"schema": schema, "reference": reference}[sys.argv[1]](), end="")
