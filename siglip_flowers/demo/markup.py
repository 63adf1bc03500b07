"""An answer as HTML, complete in itself: images are embedded, and no file is named."""

import base64
import html
import io

from PIL import Image

from siglip_flowers.demo.answer import Answer

HOW_SALIENCY = {"map": "attention of the pooling head", "mean": "attention rollout"}
EMPTY = '<p class="sf-hint">The answer appears here.</p>'
STYLE = """
.gradio-container { width: 100% !important; max-width: 1080px !important;
  margin: 0 auto !important; }
:is(button, a, input, [tabindex]):focus-visible { outline: 3px solid #be185d !important;
  outline-offset: 2px; }
.sf-answer { container-type: inline-size; }
.sf-answer h2 { margin: 0 0 .6rem; font-size: 1.35rem; overflow-wrap: anywhere; }
.sf-answer h3 { margin: 1.2rem 0 .4rem; font-size: 1rem; }
.sf-answer p { margin: .2rem 0 .6rem; }
.sf-hint { opacity: .75; }
.sf-problem { border-left: 4px solid #b91c1c; padding: .5rem .8rem; margin: 0; }
.sf-classes { list-style: none; margin: 0; padding: 0; }
.sf-classes li { display: grid; grid-template-columns: 1fr auto; gap: 0 .8rem; padding: .25rem 0; }
.sf-classes .sf-name { overflow-wrap: anywhere; }
.sf-classes .sf-share { font-variant-numeric: tabular-nums; }
.sf-classes .sf-bar { grid-column: 1 / -1; height: 6px; border-radius: 3px; overflow: hidden;
  background: var(--border-color-primary, #ddd); }
.sf-classes .sf-bar span { display: block; height: 100%; background: #be185d; }
.sf-answer figure { margin: 0; }
.sf-answer img { display: block; max-width: 100%; border-radius: 6px; }
.sf-overlay img { max-height: 320px; }
.sf-answer figcaption { font-size: .85rem; margin-top: .25rem; overflow-wrap: anywhere; }
.sf-nearest { display: grid; gap: .7rem; grid-template-columns: repeat(3, 1fr); }
.sf-nearest img { width: 100%; aspect-ratio: 1; object-fit: cover; }
@container (min-width: 560px) {
  .sf-columns { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1.5rem; }
}
"""


def render_answer(answer: Answer, pooling: str) -> str:
    """Return the HTML of an answer; names are escaped."""
    if answer.problem:
        return (
            '<div class="sf-answer" role="alert"><p class="sf-problem">This file cannot be read as '
            f"an image: {html.escape(answer.problem)}.</p></div>"
        )
    best = answer.results[0]
    summary = f"{best['label']}, {_format_share(best['score'])}"
    if answer.known is False:
        summary = f"Not one of the known classes; nearest: {best['label']}"
    overlay = ""
    if answer.overlay is not None:
        overlay = "<h3>Where the model looks</h3>" + _render_image(
            answer.overlay,
            "The image, brighter where the model looks",
            f"Brighter patches weigh more ({HOW_SALIENCY[pooling]}).",
            "sf-overlay",
        )
    nearest = '<p class="sf-hint">Not available: the page was started without data.</p>'
    if answer.neighbors:
        figures = "".join(
            _render_image(thumbnail, f"Training image: {name}", f"{name}, {cosine:.2f}")
            for thumbnail, name, cosine in answer.neighbors
        )
        nearest = (
            f'<div class="sf-nearest">{figures}</div>'
            '<p class="sf-hint">With the cosine similarity of their features.</p>'
        )
    return (
        f'<div class="sf-answer" role="status"><h2>{html.escape(summary)}</h2>'
        f'<div class="sf-columns"><div><h3>Likeliest classes</h3>{_render_classes(answer)}</div>'
        f"<div>{overlay}</div></div><h3>Nearest training images</h3>{nearest}</div>"
    )


def _format_share(score: float) -> str:
    # With a space that does not break the line.
    return f"{100 * score:.1f}\u00a0%"


def _render_classes(answer: Answer) -> str:
    items = [
        f'<li><span class="sf-name">{html.escape(result["label"])}</span>'
        f'<span class="sf-share">{_format_share(result["score"])}</span>'
        f'<span class="sf-bar" aria-hidden="true"><span style="width:{100 * result["score"]:.1f}%">'
        "</span></span></li>"
        for result in answer.results
    ]
    return f'<ol class="sf-classes">{"".join(items)}</ol>'


def _render_image(image: Image.Image, description: str, caption: str, kind: str = "") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<figure class="{kind}"><img src="data:image/jpeg;base64,{content}" '
        f'alt="{html.escape(description)}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )
