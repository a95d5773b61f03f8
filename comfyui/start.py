"""The pack hooked into the running ComfyUI."""

from __future__ import annotations

from pathlib import Path

from . import routes
from .host import of_server
from .launch import RECORD
from .pack import Pack


def start() -> Pack:
    """Hook the pack into the running ComfyUI, once."""
    import folder_paths
    from server import PromptServer

    server = PromptServer.instance
    running: Pack | None = getattr(server, "comfyloop", None)
    if running is not None:
        return running
    folder = Path(folder_paths.get_user_directory()) / "comfyloop"
    pack = Pack(
        folder,
        of_server(server),
        lambda event, data: server.send_sync(event, data),
        lambda: [Path(nodes, RECORD) for nodes in folder_paths.get_folder_paths("custom_nodes")],
    )
    server.comfyloop = pack
    server.add_on_prompt_handler(pack.capture.on_prompt)
    routes.add(server.routes, pack)
    pack.start()
    return pack
