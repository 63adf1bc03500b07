"""The page: a Gradio app around an explainer, served to browsers without any other host."""

import json
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import PIL.Image

from siglip_flowers.data.sources.drawing import draw_flower
from siglip_flowers.data.sources.species import SPECIES_NAMES
from siglip_flowers.demo.address import check_port
from siglip_flowers.demo.answer import Explainer
from siglip_flowers.demo.markup import EMPTY, STYLE, render_answer

TITLE = "Which flower is it?"
EXAMPLE_SPECIES = (3, 27, 58, 90)
EXAMPLE_PIXELS = 256
# Seconds after which an uploaded image is deleted, and between looks for such images.
KEEP_UPLOADS = 600
# Whatever a library's page may ask for, a browser loads nothing from another host.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)
PAGE_STYLE = """
.gradio-container { width: 100% !important; max-width: 1080px !important;
  margin: 0 auto !important; }
:is(button, a, input, [tabindex]):focus-visible { outline: 3px solid #be185d !important;
  outline-offset: 2px; }
"""
# Gradio gives the examples' buttons an image but no name.
NAME_BUTTONS = """() => {
  const names = %s;
  document.querySelectorAll("button.gallery-item").forEach(
    (button, number) => button.setAttribute("aria-label", names[number]));
}"""


class _PolicyHeader:
    """ASGI middleware that adds the content security policy to every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode("ascii"))
                message["headers"] = [*message.get("headers", []), header]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def serve_page(
    explainer: Explainer,
    *,
    host: str,
    port: int,
    max_megabytes: int,
    when_ready: Callable[[str], None],
) -> None:
    """Serve the page until an exception, such as Ctrl-C, ends it.

    Args:
        explainer: Answers for images.
        host: Address to serve on.
        port: Port to serve on.
        max_megabytes: Larger files are refused.
        when_ready: Is told the URL.

    Raises:
        InputError: The address cannot be served on.
    """
    with tempfile.TemporaryDirectory(prefix="siglip_flowers_page_") as folder:
        # Read when gradio is imported, or when it first keeps a file.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        # Four seconds, which --help and bad usage do not need.
        import gradio
        from starlette.middleware import Middleware

        page = build_page(explainer, Path(folder) / "examples")
        check_port(host, port)
        page.queue(default_concurrency_limit=1)
        try:
            _, url, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=False,
                quiet=True,
                show_error=False,
                prevent_thread_lock=True,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                footer_links=[],
                max_file_size=max_megabytes * 2**20,
                app_kwargs={"middleware": [Middleware(_PolicyHeader)]},
                theme=gradio.themes.Default(
                    primary_hue="pink",
                    font=["system-ui", "sans-serif"],
                    font_mono=["ui-monospace", "monospace"],
                ),
                css=PAGE_STYLE + STYLE,
            )
            when_ready(url)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def build_page(explainer: Explainer, examples_folder: Path) -> Any:
    """Return the page as ``gradio.Blocks``; example images are drawn into the folder."""
    # See serve_page.
    import gradio

    def answer(path: str | None) -> str:
        if path is None:
            return EMPTY
        return render_answer(explainer.explain(Path(path).read_bytes()), explainer.pooling)

    with gradio.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(KEEP_UPLOADS, KEEP_UPLOADS)
    ) as page:
        gradio.Markdown(f"# {TITLE}\nDrop an image, or choose an example.")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                image = gradio.Image(
                    type="filepath",
                    label="Image",
                    sources=["upload", "clipboard"],
                    image_mode=None,
                    height=300,
                    buttons=[],
                    elem_id="image",
                )
                # Gradio would decode the file, without limits, only to hand on its path.
                image.preprocess = (  # type: ignore[method-assign]
                    lambda payload: payload.path if payload else None
                )
                examples = draw_examples(examples_folder)
                gradio.Examples(
                    examples,
                    image,
                    label="Examples (drawn, not photographs)",
                    cache_examples=False,
                    api_name=False,  # type: ignore[arg-type]
                )
            with gradio.Column(scale=3, min_width=300):
                result = gradio.HTML(EMPTY, label="Answer", elem_id="answer", padding=False)
        names = [f"Example: {Path(path).stem}" for path in examples]
        page.load(js=NAME_BUTTONS % json.dumps(names))
        image.change(answer, image, result, api_visibility="private", show_progress="minimal")
    return page


def draw_examples(folder: Path) -> list[str]:
    """Draw the example images and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for species in EXAMPLE_SPECIES:
        path = folder / f"{SPECIES_NAMES[species]}.png"
        # Another seed than that of the data: no model was trained on these.
        PIL.Image.fromarray(draw_flower(species, 0, EXAMPLE_PIXELS, seed=1)).save(path)
        paths.append(str(path))
    return paths
