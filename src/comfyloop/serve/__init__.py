"""Adapter -> answers: engine processes, the router of versions, and the HTTP API in front of them.

    engines.py   one engine process: started, watched, restarted
    client.py    the protocol that every engine speaks, from the caller's side
    connections.py  the connections it goes over from the gateway
    router.py    which engine and adapter answers for "acme", "acme@17", in three parts:
    aliases.py     what names mean now
    places.py      which engine holds which version: load, verify, warm up, drain, unload
    promotion.py   changing what "acme" means: promote, roll back
    recorder.py  generations into the database, many in one transaction
    events.py    what happens, told to whoever listens
    metrics.py   counters for Prometheus
    api/         the HTTP routes, one module a noun
    server.py    bind a port and serve
    embedded/    the engine that comes with ComfyLoop (a process of its own)

This package imports nothing by itself, so that an engine process does not load the gateway.
"""
