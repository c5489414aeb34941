"""What the proxy costs, beside what others cost, as README.md tells: `python -m tests.bench`."""
