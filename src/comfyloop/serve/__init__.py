"""Adapter -> answers: engine processes, the router of versions, and the HTTP API in front of them.

    engines/     embedded, vLLM, LMDeploy, by URL: how each is started, watched and restarted, or swapped blue-green,
                 whether it would apply an adapter whole, and the protocol that all of them speak
    routing/     which engine and version answer for "acme", "acme@17": names, loaded versions, promotion and canary,
                 and how many people wait now
    api/         the HTTP routes, one module a noun; what is recorded, metrics, the server
    embedded/    the engine that comes with ComfyLoop (a process of its own)
    events.py    what happens, told to whoever listens

This package imports nothing by itself, so that an engine process does not load the gateway.
"""
