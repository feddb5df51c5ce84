"""The parent process: binds, forks, supervises, stops.

    supervisor  decides (pure: events and time in, actions out)
    events      the words between it and the arbiter
    slots       what it decides about: slots, and the processes that fill them
    rollout     the state of a reload
    arbiter     does it: signals, forks, reaping, timers, one loop
    kernel      what the kernel tells of processes, memory and the terminal
    sockets     addresses and listening sockets
    notify      tells systemd; readiness: what may be told in good faith
    service     what else may live in the loop: control (a socket for commands), admin (health, metrics)
    metrics     numbers of all workers, those that are gone included; exposition: as text

Standard library only. Nothing here knows of HTTP, asyncio or the user's code: what the
children do is a function handed to `arbiter.run`.
"""
