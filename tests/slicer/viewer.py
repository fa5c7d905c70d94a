"""A small viewer in a web browser: Slicer's scene and views, drawn here, beside the module's conversation.

    python -m tests.slicer.viewer FOLDER --server http://127.0.0.1:8765 [--slice K]

The scene, the views, the segments and the conversation are those of the module; only its Qt widgets are replaced, by a
page of trame. It shows that nothing below the widgets needs the desktop program, and is what `test_viewer` drives.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import types
from pathlib import Path
from typing import Any, Final

import slicer
from trame.app import get_server
from trame.ui.vuetify3 import VAppLayout
from trame.widgets import client, html, vuetify3
from trame_slicer import module as trame_slicer_module
from trame_slicer.core import LayoutManager, SlicerApp
from trame_slicer.rca_view import register_rca_factories

from medsight_core.client import RemoteBackend
from medsight_core.mrml.sources import header_of
from medsight_core.mrml.views import jump_to
from medsight_core.mrml.volumes import volume_of
from tests.slicer.series import load, to_ras

TICK: Final = 0.02
"""Seconds between two looks at what came from the server."""
STYLE: Final = """
html { overflow: hidden }
.conversation { overflow-y: auto; padding: 0 14px; font: 14px/1.35 sans-serif }
.conversation p { margin: 0 }
"""
CLICKED: Final = "$event.target.closest('a') && trigger('clicked', [$event.target.closest('a').getAttribute('href')])"


class Viewer:
    """One scan, its conversation and four views.

    Args:
        folder: Of a DICOM series.
        backend: Who is asked.
        k: The slice that is shown first; the middle one if None.
    """

    def __init__(self, folder: Path, backend: RemoteBackend, k: int | None = None) -> None:
        from MedSIGHTLib.assistant import Assistant
        from MedSIGHTLib.theme import Theme
        from MedSIGHTLib.transcript import Transcript

        self.server = get_server(client_type="vue3")
        self.server.enable_module(trame_slicer_module)
        self._theme, self._transcript = Theme(base="#212121", text="#ffffff", link="#8ab4f8"), Transcript()
        app = self._app = SlicerApp()
        scene = slicer.mrmlScene = app.scene
        scene.app_logic = app.app_logic
        slicer.modules = types.SimpleNamespace(
            segmentations=types.SimpleNamespace(logic=lambda: app.segmentations_logic),
            volumes=types.SimpleNamespace(logic=lambda: app.volumes_logic),
        )
        register_rca_factories(app.view_manager, self.server, slice_view_ui_f=_named, three_d_view_ui_f=_named)
        self._layout = LayoutManager(scene, app.view_manager, self.server)
        self._layout.register_layout_dict(LayoutManager.default_grid_configuration())
        self._layout.set_layout("Quad View")
        self.node, file_of = load(scene, folder)
        self.node.CreateDefaultDisplayNodes()
        self._light(header_of(self.node, file_of).window)
        app.display_manager.show_volume_in_slice_background(self.node)
        app.display_manager.reset_views()
        self.assistant = Assistant(begin=self._begin, connect=lambda: backend, file_of=file_of)
        self._page()
        self.assistant.on_change(self._show)
        self.assistant.choose(self.node)
        frame = volume_of(self.node).require_frame()
        middle = frame.shape[0] // 2 if k is None else k
        jump_to(scene, to_ras(frame, middle, frame.shape[1] / 2, frame.shape[2] / 2))

    def run(self, port: int) -> None:
        """Serves the page until it is ended."""
        self.server.controller.on_server_ready.add_task(self._pump)
        self.server.start(port=port, host="127.0.0.1", open_browser=False, show_connection_info=False)

    def _light(self, window: tuple[float, float] | None) -> None:
        """Shows the scan as its files propose, and in space only what was found."""
        if window is not None:
            self.node.GetDisplayNode().SetAutoWindowLevel(False)
            self.node.GetDisplayNode().SetWindowLevel(window[1], window[0])
        for view in self._app.view_manager.get_threed_views():
            view.renderer().SetUseDepthPeeling(False)  # without it what is translucent is drawn in memory as well
            view.get_view_node().SetBoxVisible(False)
            view.get_view_node().SetAxisLabelsVisible(False)

    def _begin(self, work: Any) -> Any:
        from MedSIGHTLib.worker import Worker

        worker = Worker(work)
        worker.start()
        return worker

    async def _pump(self, **_: Any) -> None:
        sys.stdout.write(f"The viewer is at http://127.0.0.1:{self.server.port}/\n")
        sys.stdout.flush()
        while True:
            self.assistant.pump()
            await asyncio.sleep(TICK)

    def _show(self) -> None:
        """Brings the page and the surfaces in space to what the conversation holds."""
        assistant, state = self.assistant, self.server.state
        turns = assistant.conversation.turns
        blocks = self._transcript.blocks(turns, self._theme, assistant.colour, assistant.suggestions())
        segments = assistant.segments
        if segments is not None and segments.node is not None and not assistant.busy:
            segments.node.CreateClosedSurfaceRepresentation()
            for view in self._app.view_manager.get_threed_views():
                view.reset_view()
                view.renderer().GetActiveCamera().Elevation(-35)
                view.schedule_render()
        with state:
            state.page, state.notice, state.busy = "".join(blocks), assistant.notice, assistant.busy
            state.turns = len(turns)

    def _ask(self) -> None:
        text = str(self.server.state.question or "").strip()
        if text and self.assistant.ask(text):
            self.server.state.question = ""

    def _clicked(self, address: str) -> None:
        from MedSIGHTLib.transcript import key_of, suggestion_of

        place = suggestion_of(address)
        if key_of(address):
            self.assistant.go_to(key_of(address))
        elif place is not None:
            self.assistant.ask(self.assistant.suggestions()[place])

    def _page(self) -> None:
        server = self.server
        server.state.update({"page": "", "notice": "", "busy": False, "question": "", "turns": 0})
        server.state.trame__title = "MedSIGHT"
        server.controller.trigger("clicked")(self._clicked)
        with VAppLayout(server) as layout:
            layout.root.theme = "dark"
            client.Style(STYLE)
            with (
                vuetify3.VNavigationDrawer(permanent=True, location="right", width=380),
                html.Div(classes="d-flex flex-column fill-height"),
            ):
                html.Div("Research use only. Not a medical device.", classes="text-caption pa-3")
                html.Div(
                    id="conversation",
                    classes="conversation flex-grow-1",
                    v_html=("page",),
                    raw_attrs=[f'@click.prevent="{CLICKED}"'],
                )
                html.Div("{{ notice }}", id="notice", v_if="notice", classes="text-caption pa-3")
                with html.Div(classes="pa-3"):
                    vuetify3.VTextField(
                        id="question",
                        v_model=("question", ""),
                        placeholder="Ask about this slice …",
                        loading=("busy",),
                        hide_details=True,
                        raw_attrs=["@keydown.enter=\"trigger('ask')\""],
                    )
            server.controller.trigger("ask")(self._ask)
            with vuetify3.VMain(), html.Div(style="width: 100%; height: 100vh"):
                self._layout.initialize_layout_grid(layout)


def _named(_server: Any, name: str, _view: Any) -> None:
    """Over each view there is nothing but its name."""
    style = "position: absolute; inset: 0; pointer-events: none"
    html.Div(name, id=f"view-{name}", classes="text-caption pa-1", style=style)


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(description="A small viewer with the module's conversation.")
    parser.add_argument("folder", type=Path, help="of a DICOM series")
    parser.add_argument("--server", required=True, help="address of `medsight serve`; the scan is sent there")
    parser.add_argument("--slice", type=int, help="shown first")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    sys.argv[1:] = []  # trame reads them as well
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "SlicerMedSIGHT"))
    Viewer(given.folder, RemoteBackend(given.server), given.slice).run(given.port)


if __name__ == "__main__":
    main()
