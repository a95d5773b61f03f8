"""The HTTP API: OpenAI's chat, and the nouns of ComfyLoop. One module a noun."""
