"""Carriage: requests in, upstream out, and back.

1. Upstream is dialled before the client is accepted, so that every failure that can be an HTTP status is one.
2. Up, every payload is decoded and judged. Down, payloads are read only while an answer is awaited.
3. After a rejected handshake the answer is delivered unchanged and the socket closed: the next one starts fresh, with
   the credential of that moment.
4. Nothing is queued between the legs: backpressure is the sockets' own.
5. What a failure looks like to a client stands in one table for HTTP and one for close codes, both in `failures`.
"""
