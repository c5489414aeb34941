"""Values that prove identity, and where they come from.

1. A credential is a frozen value whose `repr` shows no secret; each kind says how it appears in `ext`, headers and
   cookies. `kinds` is PURE.
2. A source never falls through to another: a client without its cookie is refused, not promoted to the service user.
3. Exactly one kind of credential goes upstream.
"""
