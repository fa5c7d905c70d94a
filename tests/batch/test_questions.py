"""The file of questions: what it may hold, and the sentence for what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsight_core.backend import Whole
from medsight_core.batch.questions import BatchQuestion, read_questions
from medsight_core.errors import InputError

WHOLE_FILE = """
[[questions]]
text = "Segment the liver."
name = "liver"
modalities = ["ct", "MR"]
volume = true
plane = "axial"
slices = "20:60"
exact = true

[[questions]]
text = "Is there an effusion?"
slice = 0
"""


def write(folder: Path, text: str, name: str = "questions.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_everything_that_toml_can_say(tmp_path: Path) -> None:
    assert read_questions(write(tmp_path, WHOLE_FILE)) == (
        BatchQuestion(
            text="Segment the liver.",
            name="liver",
            modalities=("CT", "MR"),
            whole=Whole(plane="axial", slices=range(20, 60), exact=True),
        ),
        BatchQuestion(text="Is there an effusion?", name="is-there-an-effusion", slice_index=0),
    )


def test_a_text_file_has_a_question_per_line(tmp_path: Path) -> None:
    path = write(tmp_path, "# ours\n\nWhere is the liver?\n  What is shown?  \n", "questions.txt")
    assert [question.text for question in read_questions(path)] == ["Where is the liver?", "What is shown?"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no question"),
        ("[[questions]]\n", "question 1 has no text"),
        ("questions = 3", r"not written as \[\[questions\]\]"),
        ("[[questions]\n", "not TOML"),
        ('title = "x"\n[[questions]]\ntext = "a"', "'title' beside"),
        ('[[questions]]\ntext = "a"\nmodality = "CT"', "'modality', which is none of"),
        ('[[questions]]\ntext = "a"\nmodalities = "CT"', "not a list of names"),
        ('[[questions]]\ntext = "a"\nmodalities = ["PET"]', "the modality 'PET'"),
        ('[[questions]]\ntext = "a"\nplane = "axial"', "needs volume = true"),
        ('[[questions]]\ntext = "a"\nvolume = true\nplane = "up"', 'no plane "up"'),
        ('[[questions]]\ntext = "a"\nvolume = true\nslices = "3"', "A:B"),
        ('[[questions]]\ntext = "a"\nvolume = 1', "neither true nor false"),
        ('[[questions]]\ntext = "a"\nslice = true', "no number from 0"),
        ('[[questions]]\ntext = "a"\nslice = -1', "no number from 0"),
        ('[[questions]]\ntext = "a"\nslice = 1\nvolume = true', "one slice and about the whole volume"),
        ('[[questions]]\ntext = 3', "a text that is not text"),
        ('[[questions]]\ntext = "a?"\n[[questions]]\ntext = "a!"', "the name of several questions"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_where(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_questions(write(tmp_path, text))
    assert caught.value.code == "bad_questions" and caught.value.remedy


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text"):
        read_questions(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_questions(tmp_path / "missing.toml")


def test_what_an_answer_rests_on_is_all_but_name_and_modalities(tmp_path: Path) -> None:
    first, _ = read_questions(write(tmp_path, WHOLE_FILE))
    other = WHOLE_FILE.replace('"liver"', '"other"').replace('["ct", "MR"]', '["CT"]')
    assert read_questions(write(tmp_path, other))[0].to_json() == first.to_json()
    other = WHOLE_FILE.replace("20:60", "20:61")
    assert read_questions(write(tmp_path, other))[0].to_json() != first.to_json()
