"""What each peer does, as a program: `python -m benchmark.peers MODULE.FUNCTION '{"argument": ...}'`.

Each function is called once in a process of its own and returns its figures, printed as one JSON object.
Peers are imported inside the functions, so that a process holds only what it measures.
"""
