"""ComfyUI's page in Debian's Chromium. Screenshots go to artefacts/comfyui/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ARTEFACTS = Path("artefacts/comfyui")
BROWSER = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY = """() => {
  const app = window.app ?? window.comfyAPI?.app?.app;
  const nodes = window.LiteGraph?.registered_node_types?.ComfyLoopAsk;
  return nodes && app?.canvas && app.extensionManager?.workflow?.activeWorkflow;
}"""
BUILD = """async (vue) => {
  const app = window.app ?? window.comfyAPI.app.app;
  if (vue) await app.extensionManager.setting.set("Comfy.VueNodes.Enabled", true);
  app.graph.clear();
  const make = (type, x, y) => {
    const node = window.LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    return node;
  };
  const paint = make("TestPainter", 40, 110), ask = make("ComfyLoopAsk", 40, 430);
  const review = make("ComfyLoopReview", 460, 110), pick = make("ComfyLoopPickImages", 820, 110);
  const save = make("SaveImage", 1260, 110);
  paint.widgets.find((w) => w.name === "count").value = 4;
  const tokens = ask.widgets.find((w) => w.name === "max_tokens");
  tokens.value = 12;
  ask.widgets.find((w) => w.name === "control_after_generate").value = "fixed";
  paint.connect(0, ask, "images"); ask.connect(0, review, "text"); ask.connect(1, review, "generation");
  paint.connect(0, pick, "images"); review.connect(0, pick, "prompt"); ask.connect(1, pick, "generation");
  pick.connect(0, save, "images");
  app.canvas.ds.scale = 0.85; app.canvas.ds.offset = [10, 10];
  app.canvas.setDirty(true, true);
  window.testApp = app;
  const changes = app.extensionManager.workflow.activeWorkflow.changeTracker;
  (changes.checkState ?? changes.captureCanvasState).call(changes);
}"""


def shot(page: Any, name: str) -> None:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(ARTEFACTS / f"{page.name}-{name}.png"))


def run(page: Any) -> None:
    page.evaluate("() => window.testApp.queuePrompt(0)")


def open_sidebar(page: Any) -> None:
    page.click(".comfyloop-tab-button, [aria-label=ComfyLoop]")
    page.wait_for_selector(".cl-sidebar .cl-dot.on")
    page.wait_for_timeout(1500)
