"""The panel's package speaks only what PythonQt and PySide6 both understand; and the search for the rest finds it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.slicer.dialect import faults

PACKAGE = Path(__file__).resolve().parents[2] / "SlicerMedSIGHT" / "MedSIGHTLib"
BINDING = "_qt.py"

WIDGET = "label = qt.QLabel('x')\n"
FAILING = {
    "a property called": WIDGET + "label.text()",
    "a property called, of one's own": "class P:\n    def __init__(self): self.e = qt.QLineEdit()\n    def f(self): return self.e.text()",  # noqa: E501
    "a property read bare": WIDGET + "if label.text: pass",
    "of whatever": "combo.currentIndex()",
    "currentData": "combo.currentData()",
    "isActiveWindow": "w.isActiveWindow()",
    "hasSelectedText": "w.hasSelectedText()",
    "document": "view.document()",
    "of a scroll bar": "view.verticalScrollBar().maximum()",
    "visible": "w.visible()",
    "enabled read": WIDGET + "label.enabled",
    "plainText": "edit.plainText()",
    "plainText read": "edit = qt.QTextEdit()\nedit.plainText",
    "a property written": WIDGET + "label.text = 'y'",
    "an attribute of one's own": WIDGET + "label.code = 1",
    "an event put onto a widget": "label.mousePressEvent = f",
    "keywords of a constructor": "qt.QLabel('x', parent=w)",
    "keywords of a method": "layout.addWidget(w, stretch=1)",
    "keywords of a known widget": WIDGET + "label.move(x=1, y=2)",
    "keywords of settings": "settings.value('a', 0, type=bool)",
    "a partial function": "b.clicked.connect(functools.partial(f, 5))",
    "a lambda that takes the tick": "b.clicked.connect(lambda i=5: f(i))",
    "a lambda without arguments": "b.triggered.connect(lambda: f())",
    "a bare slot": "b.clicked.connect(dialog.accept)",
    "a bare slot of a known widget": "edit = qt.QLineEdit()\nb.clicked.connect(edit.selectAll)",
    "an overload": "combo.activated[int].connect(f)",
    "a connection's type": "b.clicked.connect(f, qt.Qt.QueuedConnection)",
    "a string signal": "b.connect('clicked()', f)",
    "a string disconnected": "b.disconnect('clicked()', f)",
    "an emitted click": "b.clicked.emit(True)",
    "a called signal": "b.clicked()",
    "a signal blocker": "with qt.QSignalBlocker(w): pass",
    "the sender": "self.sender()",
    "a custom signal": "changed = qt.Signal(str)",
    "a scoped enum": "qt.QSizePolicy.Policy.Expanding",
    "a scoped enum of Qt": "qt.Qt.AlignmentFlag.AlignLeft",
    "an enum's value": "qt.Qt.Key_Return.value",
    "an enum as a number": "int(qt.Qt.Key_Return)",
    "an enum of an object": "box = qt.QSizePolicy()\nb = qt.QFrame()\nb.setFrameShape(b.StyledPanel)",
    "a number for an enum": "label.setAlignment(1)",
    "super of an event": "class E(qt.QTextEdit):\n    def keyPressEvent(self, ev): super().keyPressEvent(ev)",
    "super of a method": "class E(qt.QDialog):\n    def reject(self): super().reject()",
    "a size hint": "class E(qt.QWidget):\n    def sizeHint(self): return s",
    "a layout of one's own": "class E(qt.QWidget):\n    def f(self): self.layout = 1",
    "a size of one's own": "class E(qt.QWidget):\n    def f(self): self.size = 5",
    "isinstance": "isinstance(b, qt.QWidget)",
    "isinstance of several": "isinstance(b, (int, qt.QWidget))",
    "the meta object": "w.metaObject()",
    "the class name": "w.className()",
    "a filter that is no QObject": "class F:\n    def eventFilter(self, o, e): return False",
    "a filter without a parent": "class F(qt.QObject):\n    def eventFilter(self, o, e): return False\nf = F()",
    "a filter nobody keeps": "w.installEventFilter(F(w))",
    "a filter that returns nothing": "class F(qt.QObject):\n    def eventFilter(self, o, e): print(e)",
    "the position of an event": "event.position()",
    "a shortcut of a string": "qt.QShortcut('Ctrl+Return', w)",
    "a shortcut with a slot": "qt.QShortcut(keys, w, f)",
    "an action's shortcut": "action.setShortcut('Ctrl+R')",
    "old keys": "qt.Qt.CTRL",
    "a timer without a parent": "t = qt.QTimer()",
    "a child by its class's name": "w.findChild('QPushButton', 'n')",
    "children and a list": "w.findChildren(qt.QLabel) + [x]",
    "the end of the program": "sys.exit()",
    "append": "view = qt.QTextBrowser()\nview.append(text)",
    "bytes of Qt": "bytes(process.readAllStandardOutput())",
    "a string of Qt's bytes": "str(process.readAll(), 'utf8')",
    "a picture of bytes": "qt.QImage(data, w, h, stride, qt.QImage.Format_RGB888)",
    "a box of buttons": "qt.QDialogButtonBox(qt.QDialogButtonBox.Ok | qt.QDialogButtonBox.Cancel)",
    "a file dialog": "name = qt.QFileDialog.getOpenFileName(w, 'Open')",
    "many files": "qt.QFileDialog.getOpenFileNames(w)",
    "an answer": "qt.QInputDialog.getText(w, 'a', 'b')",
    "a loader with a path": "qt.QUiLoader().load('panel.ui')",
    "what is nowhere": "qt.QTest.keyClick(w)",
    "what one has only": "qt.QRegExp('a')",
    "a thread": "qt.QThread()",
    "font metrics": "w.fontMetrics()",
    "the screen": "qt.QGuiApplication.primaryScreen()",
    "None for a text": "label.setText(None)",
    "bytes for a text": "label.setText(b'x')",
    "a number for a text": "label.setText(5)",
    "a word for a bool": "b.setEnabled('yes')",
    "numpy's bool": "b.setChecked(np.any(mask))",
    "delete on close": "w.setAttribute(qt.Qt.WA_DeleteOnClose)",
    "a dialog deleted": "d = qt.QDialog()\nd.deleteLater()",
    "the panel deleted": "self.widget.deleteLater()",
    "an item kept": "self.row = table.item(0, 0)",
    "an item kept that was made": "self.rows[key] = qt.QListWidgetItem('x')",
    "an item kept in a list": "self.rows.append(table.topLevelItem(0))",
    "the binding imported": "from PySide6 import QtCore",
    "qt imported": "import qt",
    "events worked off": "qt.QApplication.processEvents()",
}
ALLOWED = """
    label = qt.QLabel("x", parent)
    text = val(label.text)
    label.setText(clean(text))
    label.setProperty("code", "1.1")
    index = combo.itemData(val(combo.currentIndex))
    shown = label.isVisible() and button.isChecked()
    button.clicked.connect(lambda *a: dialog.accept())
    button.clicked.connect(lambda *a, i=i: f(i))
    button.clicked.connect(self.send)
    edit.textChanged.connect(label.setText)
    box.toggled.connect(widget.setVisible)
    cell.cellEntered.connect(lambda row, *a: f(row))
    label.setAlignment(qt.Qt.AlignLeft | qt.Qt.AlignTop)
    bar = view.verticalScrollBar()
    bar.setValue(val(bar.maximum))
    path = path_of(qt.QFileDialog.getSaveFileName(w, "Save", "a", "b"))
    timer = qt.QTimer(parent)
    qt.QTimer.singleShot(5, f)
    keys = qt.QShortcut(qt.QKeySequence("Ctrl+Return"), w)
    buttons = qt.QDialogButtonBox()
    buttons.setStandardButtons(qt.QDialogButtonBox.Ok | qt.QDialogButtonBox.Cancel)
    data = process.readAllStandardOutput().data()
    name = table.item(0, 0).text()
    place = event.pos().x()
    finding = replace(finding, name="a")
    text.replace("a", "b").title()
    slicer.util.addVolumeFromArray(a, name="CT")
    picture = qt.QImage.fromData(b"P6")
    if isinstance(event, RegionFound): pass
    child.deleteLater()

    class Filter(qt.QObject):
        def __init__(self, parent):
            super().__init__(parent)
            self._parent_key = 1

        def eventFilter(self, watched, event):
            return event.type() == qt.QEvent.KeyPress and not (event.modifiers() & qt.Qt.ShiftModifier)

    keep = Filter(edit)
    edit.installEventFilter(keep)

    class Edit(qt.QTextEdit):
        def keyPressEvent(self, event):
            qt.QTextEdit.keyPressEvent(self, event)

    class Own(Base):
        def f(self):
            return super().describe()
"""


@pytest.mark.parametrize("code", FAILING.values(), ids=FAILING)
def test_what_only_one_binding_understands_is_found(code: str) -> None:
    assert faults(code)


def test_what_both_understand_is_left_alone() -> None:
    assert faults(textwrap.dedent(ALLOWED)) == []


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.name)
def test_the_package_speaks_what_both_understand(file: Path) -> None:
    found = faults(file.read_text(encoding="utf-8"), binding=file.name == BINDING)
    assert not found, "\n".join(f"{file.name}:{fault.line}: {fault.what}" for fault in found)
