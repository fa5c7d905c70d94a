"""One question about a volume while it is answered by measuring: look, find by name, measure, say.

The language model reads nothing: what is said are measurements of what a survey found.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from medsight_core import laterality
from medsight_core.events import Done, Event, Progress, RegionFound, TextDelta, Warning
from medsight_core.imaging.planes import reformat
from medsight_core.inference.looking import Looked
from medsight_core.inference.plan import Plan
from medsight_core.inference.referring import evidence_of
from medsight_core.inference.reply import Stopwatch
from medsight_core.inference.stopping import STOPPED, Stopped, stoppable
from medsight_core.inference.surveying import Survey, Surveying, classes_of
from medsight_core.naming import is_lesion
from medsight_core.questioning import answer_measured, show_reference, slices_text
from medsight_core.referring import Inside, OnSide
from medsight_core.regions import Answer
from medsight_core.understanding import Understood

if TYPE_CHECKING:
    from medsight_core.inference.volumes import VolumeEngine


def wanted_names(understood: Understood, taught: Sequence[str]) -> tuple[str, ...]:
    """What must be looked for to answer a question.

    Beside what it names: the organs, where it asks in which of them a lesion lies; and where it is about sides, what
    there is one of on either side, which shows the middle where the body's flanks are not in view.

    Args:
        understood: The question.
        taught: Names of what can be found.
    """
    reference = understood.reference
    if reference is None:
        return tuple(taught)
    names = [*reference.names]
    where = understood.kind == "where"
    if where and any(is_lesion(target.name) for target in reference.targets):
        names += [name for name in taught if not is_lesion(name)]
    sided = (isinstance(s, OnSide) or (isinstance(s, Inside) and s.place.side) for s in reference.selectors)
    if where or any(target.side for target in reference.targets) or any(sided):
        names += laterality.counterparts(taught)
    return tuple(dict.fromkeys(names))


class Measuring:
    """One question about a volume while it is answered by measuring.

    Args:
        volumes: Who answers.
        understood: The question.
        looked: What is known of the slices.
        plan: What is to be done.
        cancel: See `VolumeEngine.ask`.
    """

    def __init__(
        self,
        volumes: VolumeEngine,
        understood: Understood,
        looked: Looked,
        plan: Plan,
        *,
        cancel: threading.Event | None,
    ) -> None:
        self._volumes = volumes
        self._understood = understood
        self._looked = looked
        self._plan = plan
        self._cancel = cancel
        self._watch = Stopwatch("measure")

    def events(self) -> Iterator[Event | None]:
        """Events up to `Done`; None where a step brought nothing to tell."""
        yield from map(Warning, self._plan.warnings)
        yield Progress(0, len(self._plan.slices), self._plan.sentence)
        known = self._volumes.classes
        names = wanted_names(self._understood, self._volumes.taught(self._looked.cut.original))
        surveying = Surveying(self._volumes, self._looked, self._plan, classes_of(names, known), cancel=self._cancel)
        try:
            survey = yield from surveying.steps()
            yield Progress(0, 0, "Measuring")
            measuring = stoppable(partial(self._answer, survey), self._cancel)
            answer = yield from self._watch.over("measure", measuring)
        except Stopped:
            yield STOPPED
            return
        spent = {**survey.provenance.timings, **self._watch.seconds}
        spent["total"] += self._watch.seconds["measure"]
        answer = replace(
            answer,
            warnings=(self._measured(answer), *self._plan.warnings, *_of_what_is_shown(survey, answer)),
            provenance=replace(answer.provenance, timings=spent),
        )
        yield TextDelta(answer.text)
        for region in answer.volume_regions:
            yield RegionFound(region)
        yield from (Warning(sentence) for sentence in answer.warnings if sentence not in self._plan.warnings)
        yield Done(answer)

    def _answer(self, survey: Survey) -> Answer:
        evidence = evidence_of(self._looked.cut.original, survey)
        understood = self._understood
        if understood.way == "show" and understood.reference is not None:
            return show_reference(understood.reference, evidence)
        assert understood.kind is not None
        return answer_measured(understood.kind, understood.phrase, evidence)

    def _measured(self, answer: Answer) -> str:
        """That these are no words of the model, and which slices they rest on."""
        plan, rests = self._plan, answer.provenance.settings["slices"]
        looked = f"{len(plan.slices)} {plan.words} slices were".replace("  ", " ")
        looked = f"slice {plan.slices[0]} alone was" if len(plan.slices) == 1 else looked
        said = f"This was measured, not read: {looked} looked at, and the language model read none."
        if not rests:
            return said
        own = reformat(self._looked.cut.original).words
        numbered = f"{own} {slices_text(rests)}".lstrip()
        return f"{said} It rests on {numbered}{'' if plan.plane == 'acquired' else ', as they were acquired'}."


def _of_what_is_shown(survey: Survey, answer: Answer) -> Iterator[str]:
    """How the masks that are shown were joined; that of the others stands in the provenance."""
    for label in dict.fromkeys(region.label for region in answer.volume_regions):
        yield from (step for step in survey.provenance.settings["joining"] if step.startswith(f"{label}: "))
