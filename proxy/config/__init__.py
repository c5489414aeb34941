"""File and environment to one frozen tree. All validation is here; `cli` hands in the environment, and nothing else
reads it.

1. Every problem is found at once and named by its key, or by the variable that it came from.
2. Values are never quoted, since a secret may stand in the wrong place.
3. Only what wires sees this room; every other one receives plain values.
"""

from proxy.config.identities import secrets_in
from proxy.config.loading import BadConfiguration, admin_in, clients_in, load, vault_in
from proxy.config.problems import Problem
from proxy.config.tree import (
    OWN_SOURCES,
    PREFIX,
    ClientSettings,
    Config,
    CredentialSettings,
    GrantSettings,
    JwtSettings,
    VaultSettings,
    credentials_for,
    entry_of,
    identity_of,
    source_of,
    variable_of,
)
from proxy.config.values import UNIX


__all__ = [
    "OWN_SOURCES",
    "PREFIX",
    "UNIX",
    "BadConfiguration",
    "ClientSettings",
    "Config",
    "CredentialSettings",
    "GrantSettings",
    "JwtSettings",
    "Problem",
    "VaultSettings",
    "admin_in",
    "clients_in",
    "credentials_for",
    "entry_of",
    "identity_of",
    "load",
    "secrets_in",
    "source_of",
    "variable_of",
    "vault_in",
]
