"""The page in the browser: takes a file and words, shows the output video with its objects.

gradio (extra [demo]) builds and serves it.
"""

import ipaddress
import logging
import os
from html import escape
from types import ModuleType
from typing import Any

from ovformer.data.exports.media import VIDEO_SUFFIXES
from ovformer.data.files.image_files import IMAGE_SUFFIXES
from ovformer.demo.output_folder import PredictionOptions
from ovformer.demo.prediction_service import ERRORS, PredictionService

_MAX_WAITING = 8  # requests in the queue; further ones are refused
_MAX_AGE = 2 * 3600  # seconds; older uploads are removed
_STYLE = "iframe.result { width: 100%; height: 82vh; border: 0; background: #fff; }"

logger = logging.getLogger(__name__)


def make_page(service: PredictionService, words: str, score_threshold: float) -> Any:
    """Return the page, a ``gradio.Blocks``.

    Args:
        service: finds the objects.
        words: initial text of the field of words.
        score_threshold: initial least score.

    Raises:
        ModuleNotFoundError: gradio is not installed.
    """
    gr = import_gradio()
    limits = service.limits

    def find(
        path: str | None,
        words: str | None,
        score_threshold: float,
        stride: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (gradio passes it only to a parameter with this default)
    ) -> tuple[str, list[str]]:
        # For the button "Find": returns the result page as HTML, and the files to download.
        options = PredictionOptions(stride=max(1, int(stride)), score_threshold=score_threshold)
        try:
            return service.find(request.session_hash, path, words or "", options, progress.tqdm)
        except ERRORS as error:
            logger.warning("Not done: %s", error)
            # gradio shows the message as HTML, and it may quote what a visitor typed.
            raise gr.Error(escape(str(error)), duration=30, print_exception=False) from error

    def stop(request: gr.Request) -> None:
        service.stop(request.session_hash)

    # Outside the queue: "stop" must not wait for the work that it ends.
    silent = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    cache = (600, _MAX_AGE)  # seconds between two searches for old files, and their age
    with gr.Blocks(title="OVFormer", analytics_enabled=False, delete_cache=cache) as blocks:
        gr.Markdown("## OVFormer: find, segment, track and name the objects of a video")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                path = gr.File(
                    label=f"Video or picture, up to {limits.upload_mb} MB",
                    file_types=[*VIDEO_SUFFIXES, ".gif", ".ts", *IMAGE_SUFFIXES],
                    height=140,
                    elem_id="upload",
                )
                words_box = gr.Textbox(
                    words,
                    label="Words, with commas",
                    info="Or names of vocabularies: lvis, coco, lvvis, ... 'checkpoint' stands for "
                    "the names that the model was trained with.",
                    lines=3,
                )
                score = gr.Slider(0, 1, score_threshold, step=0.01, label="Lowest score to show")
                stride = gr.Slider(
                    1,
                    30,
                    1,
                    step=1,
                    label="Process one frame of N",
                    info=f"At most {limits.frames} frames are processed; the rest is skipped.",
                )
                with gr.Row():
                    find_button = gr.Button("Find", variant="primary")
                    stop_button = gr.Button("Stop")
                files = gr.File(label="Downloads", file_count="multiple", interactive=False)
            with gr.Column(scale=2, min_width=480):
                view = gr.HTML("Results appear here.", min_height=300)
        find_button.click(
            find, [path, words_box, score, stride], [view, files], show_progress_on=view
        )
        stop_button.click(stop, **silent)
        blocks.unload(stop)  # closing the page stops the work
    return blocks.queue(max_size=_MAX_WAITING, default_concurrency_limit=1, api_open=False)


def serve(blocks: Any, service: PredictionService, host: str, port: int) -> None:
    """Serve a page until Ctrl-C.

    Args:
        blocks: see :func:`make_page`.
        service: the one that the page uses.
        host: address to listen on. The log warns of one that other machines can reach.
        port: to listen on.

    Raises:
        OSError: the port is taken.
    """
    gr = import_gradio()
    if not _is_local(host):
        logger.warning(
            "--host %s: whoever reaches this machine can use the page, without a password. "
            "127.0.0.1, the default, is for this machine alone",
            host,
        )
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            max_file_size=f"{service.limits.upload_mb}mb",
            theme=gr.themes.Base(**fonts),  # the default theme loads its own from the internet
            css=_STYLE,
            footer_links=[],
            allowed_paths=[],
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        print(f"{blocks.local_url} (Ctrl-C ends it)", flush=True)
        blocks.block_thread()
    finally:
        service.stop_all()


def import_gradio() -> ModuleType:
    """Return gradio, with its telemetry off.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModuleNotFoundError(
            "the page is made by gradio, which is missing: pip install 'ovformer[demo]'",
            name="gradio",
        ) from error
    return gradio


def _is_local(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
