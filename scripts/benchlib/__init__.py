"""The parts of `scripts/bench`: the benchmark of prefork against its peers.

    cases     what is asked of a server, and how its answers are checked
    peers     which servers there are, and how each is started
    clients   the other half, bench --client: what is asked of a client, which there are
    sides     the two halves as tables and texts
    tools     the peers' virtual environment, the Go binaries, facts about machine and versions
    process   servers, wrk and clients as processes: started on one core, measured from /proc, always ended
    load      one run of wrk
    client_load   one run of a client
    special   the two measures that wrk cannot make: idle connections and start-up
    runner    the rounds: A B C, A B C, ...
    targets   the figures that prefork sets itself, and whether a run reached them
    report    tables of a run for the terminal and for the README
    picture   the same as an SVG

Standard library only: whoever has Python and wrk can run it. A run's result is one JSON-able dict (`runner`
describes it); everything that prints or draws works from that dict alone.
"""
