"""The only room that dials Cumulocity. Foreign exceptions become ours here.

1. One upstream WebSocket serves one client, and is opened with one credential.
2. No cookie jar, no redirects, no decompression, no total timeout, no connector limit: each default of the HTTP client
   is wrong for this job (a redirect would carry credentials to whoever is named in it).
3. A pooled connection serves one credential and one browser session only, and only after a clean ending.
"""
