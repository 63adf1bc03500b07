"""The page: a Gradio app around an explainer, served to browsers without any other host."""

import base64
import html
import io
import json
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from siglip_flowers.base.text import abbreviate, count
from siglip_flowers.demo.answer import Answer, Explainer
from siglip_flowers.demo.options import DemoArguments

TITLE = "Image classifier"
EMPTY = '<p class="sf-hint">The answer appears here.</p>'
HOW_SALIENCY = {"map": "attention of the pooling head", "mean": "attention rollout"}
NAMED_CLASSES = 3
# Seconds after which an uploaded image is deleted.
KEEP_UPLOADS = 600
# Larger files are refused during the upload.
MAX_UPLOAD_BYTES = 64 * 2**20
# Browsers load nothing from another host, whatever the page of a library asks for.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)
# Gradio gives the buttons of examples an image but no name, and takes files of type image/* alone,
# while browsers know no type of formats such as HEIC.
SCRIPT = """() => {
  const type = Object.getOwnPropertyDescriptor(Blob.prototype, "type").get;
  Object.defineProperty(File.prototype, "type", {
    configurable: true, get() { return type.call(this) || "image/unknown"; }});
  const names = %s;
  document.querySelectorAll("button.gallery-item").forEach(
    (button, number) => button.setAttribute("aria-label", names[number]));
}"""


async def _add_policy(request: Any, answer: Callable[[Any], Awaitable[Any]]) -> Any:
    """Add the content security policy to a response."""
    response = await answer(request)
    response.headers["content-security-policy"] = POLICY
    return response


def describe_classes(names: Sequence[str], dataset: str | None) -> str:
    """Return a sentence in HTML about what the model knows."""
    source = f" of {dataset}" if dataset else ""
    known = f"{count(len(names), 'class')}{source}: {abbreviate(names, NAMED_CLASSES)}"
    return html.escape(f"The model knows {known}.")


def serve_page(
    explainer: Explainer,
    options: DemoArguments,
    dataset: str | None,
    examples: Sequence[tuple[str, Image.Image]],
) -> None:
    """Serve the page until an exception, such as Ctrl-C, ends it.

    Args:
        explainer: Answers for images.
        options: The address, and the largest file to accept.
        dataset: The name of the model's data set, if known.
        examples: Images to try, with their classes.

    Raises:
        InputError: The address cannot be served on.
    """
    with tempfile.TemporaryDirectory(prefix="siglip_flowers_page_") as folder:
        # Gradio reads these when it is imported or keeps its first file.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "uploads")
        # Four seconds, which --help and bad usage do not need.
        import gradio
        from starlette.middleware import Middleware
        from starlette.middleware.base import BaseHTTPMiddleware

        page = build_page(explainer, dataset, examples, Path(folder))
        page.queue(default_concurrency_limit=1)
        try:
            _, url, _ = page.launch(
                server_name=options.host,
                server_port=options.port,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                footer_links=[],
                max_file_size=MAX_UPLOAD_BYTES,
                app_kwargs={"middleware": [Middleware(BaseHTTPMiddleware, dispatch=_add_policy)]},
                theme=gradio.themes.Default(
                    primary_hue="pink",
                    font=["system-ui", "sans-serif"],
                    font_mono=["ui-monospace", "monospace"],
                ),
                css_paths=Path(__file__).with_name("page.css"),
            )
            print(f"The page is at {url} (press Ctrl-C to stop).", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def build_page(
    explainer: Explainer,
    dataset: str | None,
    examples: Sequence[tuple[str, Image.Image]],
    folder: Path,
) -> Any:
    """Return the page as ``gradio.Blocks``; examples are written to the folder."""
    # See serve_page.
    import gradio

    def answer(path: str | None) -> str:
        if path is None:
            return EMPTY
        return render_answer(explainer.explain(Path(path).read_bytes()), pooling)

    pooling = explainer.classifier.engine.model.config.pooling
    title = f"{TITLE}: {dataset}" if dataset else TITLE
    description = describe_classes(explainer.classifier.class_names, dataset)
    with gradio.Blocks(
        title=title, analytics_enabled=False, delete_cache=(KEEP_UPLOADS, KEEP_UPLOADS)
    ) as page:
        gradio.HTML(
            f"<h1>{html.escape(title)}</h1><p>{description} Drop an image to classify it.</p>"
        )
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
                # Gradio would decode the file, without limits, only to pass on its path.
                image.preprocess = (  # type: ignore[method-assign]
                    lambda payload: payload.path if payload else None
                )
                if examples:
                    gradio.Examples(
                        _write_examples(examples, folder),
                        image,
                        label="Test images",
                        cache_examples=False,
                        api_name=False,  # type: ignore[arg-type]
                    )
            with gradio.Column(scale=3, min_width=300):
                result = gradio.HTML(EMPTY, label="Answer", elem_id="answer", padding=False)
        names = [f"Example: {name}" for name, _ in examples]
        page.load(js=SCRIPT % json.dumps(names))
        image.change(answer, image, result, api_visibility="private", show_progress="minimal")
    return page


def _write_examples(examples: Sequence[tuple[str, Image.Image]], folder: Path) -> list[str]:
    paths = [folder / f"example{number}.png" for number in range(len(examples))]
    for path, (_, image) in zip(paths, examples, strict=True):
        # Pixels only: metadata may say where and when an image was taken.
        image.save(path)
    return [str(path) for path in paths]


def render_answer(answer: Answer, pooling: str) -> str:
    """Return the HTML of an answer; names are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("siglip_flowers.demo", ""),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"uri": _encode_image, "share": "{:.1%}".format}
    template = environment.get_template("answer.html.jinja")
    return template.render(answer=answer, how=HOW_SALIENCY[pooling])


def _encode_image(image: Image.Image) -> str:
    """Return an image as the data URI of a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
