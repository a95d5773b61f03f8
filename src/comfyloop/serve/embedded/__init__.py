"""The embedded engine: one base model and its adapters behind OpenAI's chat protocol, on CPU or one GPU.

It is a process of its own (``python -m comfyloop.serve.embedded --model DIR``): uvicorn answers in the main
thread, one model thread owns torch, and requests cross over by a queue. In the order in which a request sees
them::

    protocol.py    what may be sent, and the forms of the answers
    app.py         HTTP: routes, errors
    answer.py      a request's answers, whole or streamed; cancelled when the client leaves
    structure.py   answers that follow a JSON schema
    prompts.py     messages and images -> token ids and pixels, by the model's own template and processor
    engine.py      the model thread: admission, continuous batching, cancelling
    batch.py       the decoder: prefill in chunks, one decode step for all rows
    llama.py       a faster decode step for Llama-shaped models
    kv.py          keys and values of all rows, and of prompt prefixes seen before
    lora.py        adapters: read, verified, applied row by row, removed without a trace
    sampling.py    the next token and its probabilities
    text.py        tokens -> text that never ends within a character; stop strings
    loading.py     a directory or hub id -> model, tokenizer, processor
"""
