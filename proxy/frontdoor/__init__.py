"""The browser-facing front door: people sign in and out, their sessions are kept here, and the platform's tokens never
reach the browser.

1. A browser holds a ticket, and nothing else: what it stands for lies in a store, sealed.
2. Only this room writes sessions.
3. What changes something is taken from pages of our own origin, and of those that are listed, only.
"""
