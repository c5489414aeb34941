"""The demo: an upstream to play with, and a page that shows what the proxy does in front of it.

`proxy.demo.simulator` is also the honest upstream of the tests.
"""
