"""What operators see and steer: metrics, probes, logging, the way out.

1. The admin listener is its own; nothing of it is reachable through the public one.
2. Labels come from closed sets and every series exists from the start. Metric names are public API.
3. Liveness never asks upstream. Readiness says whether we can serve, not whether Cumulocity is up.
4. Whatever is written to standard error passes through `logs`, which hides what is secret in it. Nothing else prints.
"""
