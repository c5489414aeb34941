"""Who may come in, and what may cross.

1. The gate stands in front of every upgrade and POST in every mode, loopback included, and judges per request.
2. It judges a `Head`, never a framework's request: both transports pass the same function.
3. What crosses is named; nothing crosses for not being forbidden.
"""
