"""The peers' tasks, as a program: `python -m benchmark.peers MODULE.FUNCTION '{"argument": ...}'`.

Each function is called once in a separate process and returns its figures, printed as one JSON object. Peers are
imported inside the functions, so that a process only loads the peer that it measures.
"""
