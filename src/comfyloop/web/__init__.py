"""The desk: pages over the API, for people. One module a page; each reads what the API would tell the same caller, and
what a person does there goes to the API itself."""

from comfyloop.web.desk import install, of_folder

__all__ = ["install", "of_folder"]
