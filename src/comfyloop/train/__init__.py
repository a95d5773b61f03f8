"""Data in, adapter out.

A run is a directory: `spec.json` says what to do, `python -m comfyloop.train RUN_DIR` does it, and `status.json`,
`log.jsonl` and `adapter/` hold the results. Nothing that starts and watches runs (`specs`, `run.directory`,
`runners`) imports torch; the training process does.
"""
