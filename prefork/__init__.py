"""prefork: Go's net/http in Python, run as a pre-fork server.

    from prefork import http

Importing this package imports nothing else: the master process must stay light.
"""

__version__ = "0.1.0"
