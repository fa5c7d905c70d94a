"""The module MedSIGHT of 3D Slicer: registered here, made of what is in MedSIGHTLib and in medsight_core."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

HOMEPAGE = "https://github.com/medsight/SlicerMedSIGHT"
OLDEST_PYTHON = (3, 11)
VOLUME = "Volume"
VOLUME_CLASSES = ["vtkMRMLScalarVolumeNode", "vtkMRMLVectorVolumeNode"]

# Slicer's own sample data, offered once more under our name: what they are called there, what they are, and the file.
SAMPLES = (
    ("CTLiver", "CTLiver.nrrd", "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"),
    ("CTChest", "CT-chest.nrrd", "4507b664690840abb6cb9af2d919377ffc4ef75b167cb6fd0f747befdb12e38e"),
    ("MRBrainTumor1", "RegLib_C01_1.nrrd", "998cb522173839c78657f4bc0ea907cea09fd04e44601f17c82ea27927937b95"),
)


#
# MedSIGHT
#
class MedSIGHT(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "MedSIGHT"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["The MedSIGHT developers"]
        self.parent.helpText = _(
            "<p>Ask a scan in plain words and read an answer whose terms are tied to segments. Each region that the "
            "model names becomes a segment, is measured, and can be saved as DICOM-SEG. A structure can be pointed at "
            "as well. The model runs on this computer or on a server that you choose; nothing is sent before you "
            "agree.</p>"
            "<p><b>Research use only. Not a medical device.</b></p>"
        )
        self.parent.helpText += f'<p>See the <a href="{HOMEPAGE}#readme">documentation</a>.</p>'
        self.parent.acknowledgementText = _(
            "<p>MedSIGHT follows the published MedSIGHT method for grounded answers about medical images; its "
            "repository says how to cite it and what its models were trained on.</p>"
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Adds scans to try the module with to Slicer's module Sample Data; nothing is downloaded before one is clicked."""
    import SampleData
    from slicer.util import TESTING_DATA_URL

    icons = Path(__file__).parent / "Resources" / "Icons"
    for name, file, digest in SAMPLES:
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category="MedSIGHT",
            sampleName=name,
            uris=f"{TESTING_DATA_URL}SHA256/{digest}",
            fileNames=file,
            nodeNames=name,
            checksums=f"SHA256:{digest}",
            thumbnailFileName=str(icons / "MedSIGHT.png"),
        )


def findCore():
    """Lets ``import medsight_core`` find the package: beside this file in an extension, above it in a source tree.

    :return: why the module cannot run in this Slicer; "" where it can.
    """
    if sys.version_info < OLDEST_PYTHON:
        have = ".".join(map(str, sys.version_info[:2]))
        return _("MedSIGHT needs a Slicer with Python 3.11 or newer; this one has Python {have}.").format(have=have)
    here = Path(__file__).resolve().parent
    for place in (here, here.parent):
        if (place / "medsight_core" / "mrml").is_dir():
            if importlib.util.find_spec("medsight_core") is None:
                sys.path.append(str(place))
            return ""
    missing = importlib.util.find_spec("medsight_core") is None
    return _("The package medsight_core is missing; install the extension again.") if missing else ""


#
# MedSIGHTWidget
#
class MedSIGHTWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Connects the window to Slicer: its scene, its DICOM database, and the choice of a volume."""

    def __init__(self, parent=None):
        self.logic = None
        self.window = None
        self.selector = None
        VTKObservationMixin.__init__(self)
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        """Called when the module is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        problem = findCore()
        if problem:
            import qt

            label = qt.QLabel(problem)
            label.setWordWrap(True)
            self.layout.addWidget(label)
            return
        from MedSIGHTLib.window import Window

        self.logic = MedSIGHTLogic()
        self.selector = slicer.qMRMLNodeComboBox()
        self.selector.nodeTypes = VOLUME_CLASSES
        self.selector.showChildNodeTypes = False
        self.selector.addEnabled = False
        self.selector.removeEnabled = False
        self.selector.renameEnabled = False
        self.selector.noneEnabled = True
        self.selector.setToolTip(_("The scan to ask about"))
        self.selector.setMRMLScene(slicer.mrmlScene)
        self.selector.connect("currentNodeChanged(vtkMRMLNode*)", self.onVolumeChosen)
        self.layout.addWidget(self.selector)
        self.window = Window(slicer.mrmlScene, file_of=fileForInstance)
        self.layout.addWidget(self.window.widget)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.StartSaveEvent, self.onSceneStartSave)
        crosshair = scene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
        if crosshair is not None:
            self.addObserver(crosshair, crosshair.CursorPositionModifiedEvent, self.onCursorMoved)
        self.restore()

    def cleanup(self):
        """Called before the module is unloaded, and before it is reloaded."""
        self.removeObservers()
        if self.window is not None:
            self.window.close()
            self.window = None

    def enter(self):
        """Called each time the module is shown."""
        self.restore()

    def exit(self):
        """Called each time another module is shown; an answer that is being written goes on."""
        if self.window is not None:
            self.window.tools.close()

    def onSceneStartClose(self, _caller=None, _event=None):
        if self.window is not None:
            self.window.let_go()

    def onSceneEndClose(self, _caller=None, _event=None):
        self.restore()

    def onSceneStartSave(self, _caller=None, _event=None):
        if self.window is not None:
            self.window.assistant.flush()

    def onCursorMoved(self, crosshair, _event):
        """Remembers the slice view that the mouse was in last: it is the one that is asked about."""
        ras = [0.0, 0.0, 0.0]
        view = crosshair.GetCursorPositionXYZ(ras)
        if view is not None and self.window is not None:
            self.window.assistant.view = view.GetLayoutName()

    def onVolumeChosen(self, node=None):
        """Turns to a volume, and remembers it in the scene."""
        if self.window is not None and not slicer.mrmlScene.IsClosing():
            self.logic.setVolume(node)
            self.window.assistant.choose(node)

    def restore(self):
        """Turns to the volume that the scene remembers, else to the one that is shown, else to none."""
        if self.window is None or slicer.mrmlScene.IsClosing():
            return
        node = self.logic.volume() or self.logic.shownVolume()
        if self.selector.currentNode() is not node:
            self.selector.setCurrentNode(node)
        if self.window.assistant.node is not node:
            self.onVolumeChosen(node)

    def onReload(self):
        """Reloads MedSIGHTLib as well; what a scene remembers of a conversation is not lost."""
        self.cleanup()
        for name in [name for name in sys.modules if name.split(".")[0] == "MedSIGHTLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


def fileForInstance(uid):
    """The file of a DICOM instance; "" where Slicer's database does not know it, or is closed."""
    database = getattr(slicer, "dicomDatabase", None)
    return (database.fileForInstance(uid) or "") if database is not None and database.isOpen else ""


#
# MedSIGHTLogic
#
class MedSIGHTLogic(ScriptedLoadableModuleLogic):
    """The module without its window: what the scene remembers of it, and asking from a script."""

    def volume(self):
        """The volume that was asked about last; None where the scene has none."""
        node = self.getParameterNode().GetNodeReference(VOLUME)
        return node if node is not None and node.GetScene() is not None else None

    def setVolume(self, node):
        """Remembers a volume in the scene."""
        parameters = self.getParameterNode()
        if parameters.GetNodeReference(VOLUME) is not node:
            parameters.SetNodeReferenceID(VOLUME, node.GetID() if node is not None else None)

    def shownVolume(self):
        """The volume in the background of a slice view, or the only one; None where that is not clear."""
        scene = slicer.mrmlScene
        for composite in list(scene.GetNodesByClass("vtkMRMLSliceCompositeNode")):
            node = scene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
            if node is not None and node.GetClassName() in VOLUME_CLASSES:
                return node
        found = [node for name in VOLUME_CLASSES for node in scene.GetNodesByClass(name) if node.GetClassName() == name]
        return found[0] if len(found) == 1 else None

    def ask(self, node, text, backend, whole=False):
        """Asks about a volume and waits for the answer; for scripts.

        :param node: volume that is asked about: the slice in the Red view, or all of it.
        :param text: question in plain words.
        :param backend: who is asked, such as ``medsight_core.client.RemoteBackend(url, token=token)``. What it is given
            leaves this computer if it is a server elsewhere.
        :param whole: ask about the whole volume.
        :return: the turn of the conversation: its text, findings and warnings. Segments are in the scene.
        """
        problem = findCore()
        if problem:
            raise RuntimeError(problem)
        from MedSIGHTLib.assistant import Assistant
        from MedSIGHTLib.waiting import AtOnce

        assistant = Assistant(begin=AtOnce, connect=lambda: backend, file_of=fileForInstance)
        assistant.choose(node)
        if not assistant.ask(text, whole):
            raise RuntimeError(assistant.notice)
        while assistant.pump():
            pass
        assistant.flush()
        return assistant.conversation.last


#
# MedSIGHTTest
#
class MedSIGHTTest(ScriptedLoadableModuleTest):
    """The checks of ``Testing/Python/MedSIGHTCases.py``, which the project's own tests run as well."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        problem = findCore()
        if problem:
            raise RuntimeError(problem)
        path = Path(__file__).parent / "Testing" / "Python" / "MedSIGHTCases.py"
        spec = importlib.util.spec_from_file_location("MedSIGHTCases", path)
        cases = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(cases)
        for name in cases.CASES:
            self.setUp()
            self.delayDisplay(f"MedSIGHT: {name.replace('_', ' ')}")
            getattr(cases, name)(self)
        self.delayDisplay("MedSIGHT: all checks passed")
