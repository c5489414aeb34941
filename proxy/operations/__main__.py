"""`python -m proxy.operations` writes the reference page of the metrics."""

from proxy.operations.reference import reference


print(reference(), end="")
