"""Builds the page from its tabs and serves it: by default to this machine only, and without internet access."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it on import

import gradio as gr
import torch
from gradio import themes
from starlette.middleware import Middleware

from opendino.app import (
    attention_pca_tab,
    correspondence_tab,
    curves_tab,
    duplicates_tab,
    export_tab,
    images_tab,
    label_tab,
    map_tab,
    outliers_tab,
    scribble_tab,
    search_tab,
    temperature_tab,
    train_tab,
    uploads,
    video_tracking_tab,
)
from opendino.app.catalog import Catalog
from opendino.app.context import Context, Head, session_id
from opendino.app.model_cache import ModelCache
from opendino.app.request_guard import Guard
from opendino.app.training_jobs import TrainingJobs
from opendino.app.upload_store import UploadStore
from opendino.core.errors import UserError

TABS = (
    images_tab, train_tab, curves_tab, map_tab, search_tab, duplicates_tab, outliers_tab, label_tab, scribble_tab,
    attention_pca_tab, correspondence_tab, video_tracking_tab, temperature_tab, export_tab,
)  # fmt: skip
_SESSIONS = 50
"""Number of sessions whose images are kept in memory, a few MB each; the oldest are dropped."""


@contextmanager
def serve(
    names: Sequence[str],
    *,
    device: torch.device,
    host: str = "127.0.0.1",
    port: int = 7860,
    out: Path | None = None,
    trainings: int = 1,
) -> Iterator[str]:
    """Serve the page until the context exits.

    Args:
        names: What the page may open, see `catalog.Catalog`.
        device: Device of the models.
        host: Address to listen on; with any other than 127.0.0.1, every machine that reaches it can use the page.
        port: Port to listen on; 0 for any free port.
        out: Folder for runs and tables made on the page; None for runs/ if there are images among the names, else for
            a temporary folder.
        trainings: Largest number of trainings that run at the same time.

    Yields:
        The URL of the page.

    Raises:
        UserError: A run, model or table does not exist, or the port is in use.
    """
    catalog, folder = Catalog(names), Path(tempfile.mkdtemp(prefix="opendino-"))
    visitors = out / "visitors" if out else folder / "runs"  # not in the catalog: each run belongs to its session
    out = out or (Path("runs") if catalog.data() else None)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        catalog = Catalog([*dict.fromkeys([*names, str(out)])])
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    made = out or folder / "runs"
    made.mkdir(parents=True, exist_ok=True)
    jobs = TrainingJobs(visitors, visitors.parent != folder, out or folder, trainings)
    context = Context(catalog, ModelCache(device, catalog.images), jobs, folder, out or folder)
    guard, page = Middleware(Guard, host=host, store=UploadStore(context.upload_folder)), build(context)
    try:
        yield _launch(page, host, port, guard)
    finally:
        page.close(verbose=False)
        jobs.close_all()
        shutil.rmtree(folder, ignore_errors=True)


def _launch(page: gr.Blocks, host: str, port: int, guard: Middleware) -> str:
    """Start the server and return its URL.

    Raises:
        UserError: The port is in use.
    """
    try:
        _, address, _ = page.queue(max_size=100, default_concurrency_limit=8).launch(
            server_name=host,
            server_port=port or _free_port(host),
            max_file_size=uploads.MAX_BYTES,
            app_kwargs={"middleware": [guard]},
            state_session_capacity=_SESSIONS,
            theme=_theme(),
            css=_STYLE,
            footer_links=[],
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            inbrowser=False,
            quiet=True,
            i18n=gr.I18n(en={"common.complete": "Done"}),  # gradio 6.31 lacks it and shows the key after an upload
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"Cannot listen on {host}:{port}: {error}", "Choose another --port") from None
    return address


def build(context: Context) -> gr.Blocks:
    """Build the page: the choice of a model and a table at the top, the tabs below."""
    with gr.Blocks(title="opendino", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        models, tables = list(context.catalog.models()), list(context.catalog.tables())
        data = list(context.catalog.data())
        with gr.Row(equal_height=True, elem_id="head"):
            gr.HTML("<h1>opendino</h1><p>A vision model from your own images, without labels</p>", min_width=240)
            chosen = (
                gr.Dropdown(models, value=models[0] if models else None, label="Model", min_width=280),
                gr.Dropdown(tables, value=tables[0] if tables else None, label="Table of images", min_width=280),
                gr.Dropdown(data, value=data[0] if data else None, label="Images", render=False),
            )
        look = gr.State(None)
        with gr.Tabs() as tabs:
            head = Head(*chosen, tabs, look)
            for tab in TABS:
                with gr.Tab(tab.NAME, id=tab.NAME):
                    tab.build(context, head)

        def list_choices(request: gr.Request) -> tuple[Any, Any]:
            models = list(context.models(session_id(request)))
            return gr.update(choices=models), gr.update(choices=list(context.catalog.tables()))

        def end_session(request: gr.Request) -> None:
            context.jobs.close(session_id(request))

        page.load(list_choices, None, [head.model, head.table], api_visibility="private", show_progress="hidden")
        page.unload(end_session)
    return page


def _free_port(host: str) -> int:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _theme() -> themes.Base:
    """Gradio's base theme with system fonts, because its default fonts are downloaded from the internet."""
    return themes.Base(
        primary_hue="blue",
        neutral_hue="zinc",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        radius_size="sm",
    )


_STYLE = """
.gradio-container { max-width: 1240px !important; width: 100% !important; margin: 0 auto !important; }
#head { align-items: end; }
#head h1 { margin: 0; font-size: 1.7rem; font-weight: 650; }
#head p { margin: .1rem 0 0; color: #71717a; }
.plots { display: grid !important; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 1rem; }
.plots .block { display: flex; flex-direction: column; }
.plots .vega-embed { flex: 1 1 0; min-height: 0; height: auto !important; }
.caption-label { max-width: 100% !important; white-space: normal !important; overflow-wrap: anywhere; }
.html-container table { border-collapse: collapse; }
.html-container :is(table, thead, tbody, tr) { border: 0 !important; }
.html-container table :is(th, td) { border: 0 !important; padding: .3rem .7rem .3rem 0 !important; text-align: left; }
.html-container table th { font-weight: normal !important; color: #71717a !important; }
table.runs { width: 100%; }
.html-container table.runs tr { border-bottom: 1px solid #e4e4e7 !important; }
table.runs :is(th, td):not(:first-child) { text-align: right !important; font-variant-numeric: tabular-nums; }
.bad-word { color: #d55e00; font-weight: 600; }
.good, .bad { padding: .6rem .9rem; border-left: 6px solid #009e73; background: #eef8f4; color: #222; }
.bad { border-color: #d55e00; background: #fdf1e8; }
.track { height: 8px; border-radius: 4px; background: #e4e4e7; overflow: hidden; margin: .4rem 0 1rem; }
.track div { height: 100%; background: #0072b2; transition: width .5s; }
.bar { display: inline-block; height: .8em; margin-right: .5em; }
"""
