"""The pure middle: Bayeux payloads, and the handshakes in flight.

1. Nothing here imports aiohttp, asyncio, a clock, files, logging or metrics. Time comes in as `now`.
2. What happened is returned, never recorded.
3. What was judged is what goes up: every client payload is decoded, judged and encoded anew.
4. Bytes in, a value or `MalformedBatch` out; no other exception leaves.
"""
