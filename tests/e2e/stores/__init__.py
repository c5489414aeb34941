"""Where sessions are kept, each real; no proxy is started for these."""
