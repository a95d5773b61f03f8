"""Adapter -> answers: engine processes, the router of versions, and the HTTP API in front of them.

    engine.py    what an engine is; engines.py: one process of it: started, watched, restarted
    engine_kinds.py  embedded, vLLM, LMDeploy, by URL: how each is started
    blue_green.py    an engine that takes adapters at its start only: a new process takes over
    adapters.py  whether an engine would apply an adapter whole
    guard.py     a program that is not ours never outlives us
    client.py    the protocol that every engine speaks, from the caller's side
    connections.py  the connections it goes over from the gateway
    router.py    which engine and adapter answers for "acme", "acme@17", in three parts:
    aliases.py     what names mean now
    places.py      (place.py) which engine holds which version: load, verify, warm up, drain, unload
    promotion.py   changing what "acme" means: promote, roll back, canary
    traffic.py   how many people wait now: training holds meanwhile
    recorder.py  generations into the database, many in one transaction
    events.py    what happens, told to whoever listens
    metrics.py   counters for Prometheus
    api/         the HTTP routes, one module a noun
    server.py    bind a port and serve
    embedded/    the engine that comes with ComfyLoop (a process of its own)

This package imports nothing by itself, so that an engine process does not load the gateway.
"""
