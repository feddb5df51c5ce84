"""The parent process: binds, forks, supervises, stops.

    supervisor  decides (pure: events and time in, actions out)
    events      the words between it and the arbiter
    slots       what it decides about: slots, and the processes that fill them
    arbiter     does it: signals, forks, reaping, timers, one loop
    sockets     addresses and listening sockets
    notify      tells systemd

Standard library only. Nothing here knows of HTTP, asyncio or the user's code: what the
children do is a function handed to `arbiter.run`.
"""
