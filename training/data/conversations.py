"""Questions and answers about a sample, worded anew each time: what the language model learns to read and write.

An answer marks each region that it names as ``<p>words</p>`` followed by `CODE`, in place of the region code that is
known only when the image has been looked at. A target that is not in the image is asked for as often as the truth
demands, so that "nothing" is learnt as an answer.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from medsight_core.markup import CLOSE, OPEN
from training.data.biomedparse import Sample, Target

CODE = "\N{REPLACEMENT CHARACTER}"
"""Stands in an answer for a region code."""

SEGMENT = (
    "Segment the {t} in this image.", "Outline the {t}.", "Where is the {t}?", "Show me the {t}.", "Mark the {t}.",
    "Please segment the {t}.", "Can you delineate the {t}?", "Find the {t} in this {m}.", "Highlight the {t}.",
    "Contour the {t}.",
    "Locate the {t}.", "{t}", "I need a mask of the {t}.", "Segment {t}.", "Draw the {t} in this {m}.",
    "Where do you see the {t}?", "Which part is the {t}?", "Trace the {t}.", "Segment the {t}.", "Delineate the {t}.",
)  # fmt: skip
PRESENT = (
    "Is there a {t}?", "Is there a {t} in this image?", "Do you see a {t}?", "Does this {m} show a {t}?",
    "Is the {t} visible?", "Any {t}?", "Can you find a {t} here?",
)  # fmt: skip
DIAGNOSE = (
    "What is the diagnosis? Name it, then segment it.", "What is the diagnosis?", "What is the abnormality? Give the "
    "diagnosis, then segment it.", "Diagnose this {m}.", "Which disease does this image show? Outline it.",
    "What is wrong here?", "Give the diagnosis and outline the finding.", "What is your diagnosis? Show it.",
)  # fmt: skip
DESCRIBE = (
    "What do you see?", "Describe this image.", "Which structures are visible?", "Segment everything that you know.",
    "What does this {m} show?", "List the regions in this image and outline them.", "Describe the findings.",
)  # fmt: skip
KIND = (
    "What kind of image is this?", "Which modality is this?", "What modality is it, and which part of the body?",
    "What am I looking at?", "Which body part is shown?",
)  # fmt: skip
WHAT = (
    "What is this?",
    "What is here?",
    "Name the marked region.",
    "What did I mark?",
    "What structure is at this place?",
)
SEGMENT_THIS = (
    "Segment this.",
    "Outline the marked region.",
    "Segment the region that I marked.",
    "Segment what is here.",
)

FORMS = {
    "CT": "CT scan", "MRI": "MRI", "X-ray": "X-ray", "Ultrasound": "ultrasound image", "Endoscopy": "endoscopy image",
    "Dermoscopy": "dermoscopy image", "Fundus": "fundus photograph", "Pathology": "pathology slide", "OCT": "OCT scan",
}  # fmt: skip
ABNORMAL = ("tumor", "tumour", "polyp", "glioma", "lesion", "nevus", "melanoma", "opacity", "consolidation", "effusion")
T = TypeVar("T")
NOTHING_HERE = "There is nothing that I know at this place."


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: plain words.
        answer: with `CODE` where a region code belongs.
        targets: index into the sample's targets for each code, in order.
        prompted: whether the question leans on the prompt.
    """

    question: str
    answer: str
    targets: tuple[int, ...] = ()
    prompted: bool = False


class Conversations:
    """Makes turns. Knows from the training set what occurs where, to ask for what cannot be there.

    Args:
        samples: the training set.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        self.places: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self.of_dataset: dict[str, set[str]] = defaultdict(set)
        self.seen: Counter[str] = Counter()
        for sample in samples:
            for target in sample.targets:
                for name in target.names:
                    self.places[name].add((sample.modality, sample.site))
                    self.of_dataset[sample.dataset].add(name)
                    self.seen[name] += 1
        self.names = sorted(self.places)

    def plain(self, sample: Sample, rng: np.random.Generator) -> Turn:
        """A turn about an image without a prompt."""
        if sample.questions:
            question, answer = sample.questions[rng.integers(len(sample.questions))]
            return Turn(question=question, answer=answer)
        makers: dict[Callable[[Sample, np.random.Generator], Turn], float] = {self.absent: 0.4, self.kind: 0.05}
        if sample.targets:
            makers |= {self.segment: 0.3, self.describe: 0.06, self.present: 0.15}
        if sample.diagnosis:
            makers |= {self.diagnose: 0.26}
        maker = choose(list(makers), rng, list(makers.values()))
        return maker(sample, rng)

    def prompted(self, sample: Sample, drawn: int | None, under: int | None, rng: np.random.Generator) -> Turn:
        """A turn that leans on a prompt.

        Args:
            sample: the image.
            drawn: target that the prompt was drawn for; None for a prompt at nothing.
            under: smallest target at the prompt, which is what "this" means.
            rng: source of randomness.
        """
        if drawn is None or under is None:
            question = choose((*WHAT, *SEGMENT_THIS), rng)
            return Turn(question=question, answer=NOTHING_HERE, prompted=True)
        if rng.random() < 0.6:
            turn = self.segment(sample, rng, drawn)
            return Turn(question=turn.question, answer=turn.answer, targets=turn.targets, prompted=True)
        words = choose(sample.targets[under].names, rng)
        if rng.random() < 0.5:
            return Turn(
                question=choose(WHAT, rng), answer=f"This is the {marked(words)}.", targets=(under,), prompted=True
            )
        return Turn(question=choose(SEGMENT_THIS, rng), answer=outlined(words), targets=(under,), prompted=True)

    def segment(self, sample: Sample, rng: np.random.Generator, index: int | None = None) -> Turn:
        """One target by name; now and then two."""
        index = int(rng.integers(len(sample.targets))) if index is None else index
        words = choose(sample.targets[index].names, rng)
        others = [i for i in range(len(sample.targets)) if i != index]
        if others and rng.random() < 0.12:
            second = int(rng.choice(others))
            more = choose(sample.targets[second].names, rng)
            return Turn(
                question=ask(SEGMENT[:10], sample, rng, f"{words} and the {more}"),
                answer=f"I have outlined the {marked(words)} and the {marked(more)}.",
                targets=(index, second),
            )
        return Turn(question=ask(SEGMENT, sample, rng, words), answer=outlined(words), targets=(index,))

    def absent(self, sample: Sample, rng: np.random.Generator) -> Turn:
        """A target that is not there."""
        name = self.missing(sample, rng)
        if rng.random() < 0.4:
            return Turn(question=ask(PRESENT, sample, rng, name), answer=f"No, there is no {name} in this image.")
        return Turn(question=ask(SEGMENT, sample, rng, name), answer=f"There is no {name} in this image.")

    def missing(self, sample: Sample, rng: np.random.Generator) -> str:
        """A target that certainly is not in the image: one of its own data set where that image is annotated as empty
        or in full, else one that occurs only elsewhere in the body or in other modalities.

        What is rarely seen is rarely asked for in vain, lest a rare name comes to mean "no".
        """
        here = {name for target in sample.targets for name in target.names}
        own = sorted(self.of_dataset[sample.dataset] - here) if sample.complete or not sample.targets else []
        if own and rng.random() < 0.7:
            return choose(own, rng)
        place = (sample.modality, sample.site)
        elsewhere = [
            n for n in self.names if place not in self.places[n] and all(site != place[1] for _, site in self.places[n])
        ]
        return choose(elsewhere, rng, [self.seen[name] ** 0.5 for name in elsewhere])

    def present(self, sample: Sample, rng: np.random.Generator) -> Turn:
        """Yes, with its region."""
        index = int(rng.integers(len(sample.targets)))
        words = choose(sample.targets[index].names, rng)
        return Turn(
            question=ask(PRESENT, sample, rng, words),
            answer=f"Yes, I have outlined the {marked(words)}.",
            targets=(index,),
        )

    def diagnose(self, sample: Sample, rng: np.random.Generator) -> Turn:
        """Diagnosis first, then its region (the DiagSeg form)."""
        question = ask(DIAGNOSE, sample, rng)
        says = f"The diagnosis is {sample.diagnosis}."
        if sample.diagnosis == "normal" or not sample.targets:
            return Turn(question=question, answer=f"{says} There is no abnormality to outline.")
        ill = [i for i, t in enumerate(sample.targets) if any(word in t.name for word in ABNORMAL)]
        shown = ill or [i for i, t in enumerate(sample.targets) if t.name == "lung"] or [0]
        return Turn(question=question, answer=f"{says} {outlined_all(sample.targets, shown)}", targets=tuple(shown))

    def describe(self, sample: Sample, rng: np.random.Generator) -> Turn:
        """Everything, in the order of the names."""
        shown = list(range(len(sample.targets)))[:6]
        answer = f"This {form(sample)} shows {listed([marked(sample.targets[i].name) for i in shown])}."
        return Turn(question=ask(DESCRIBE, sample, rng), answer=answer, targets=tuple(shown))

    def kind(self, sample: Sample, rng: np.random.Generator) -> Turn:
        """Modality and site."""
        return Turn(
            question=ask(KIND, sample, rng), answer=with_articles(f"This is a {form(sample)}, site: {sample.site}.")
        )


def corpus(samples: list[Sample], *, turns: int = 4, seed: int = 0) -> list[str]:
    """Sentences as they will be read and written, for training a tokenizer."""
    rng = np.random.default_rng(seed)
    maker = Conversations(samples)
    texts = [NOTHING_HERE, *WHAT, *SEGMENT_THIS]
    for sample in samples:
        texts += [word for pair in sample.questions for word in pair]
        for _ in range(turns):
            turn = maker.plain(sample, rng)
            texts += [turn.question, turn.answer.replace(CODE, "").replace(OPEN, "").replace(CLOSE, "")]
    return texts


def choose(options: Sequence[T], rng: np.random.Generator, weights: Sequence[float] | None = None) -> T:
    """One of several, each as likely or by weight."""
    if weights is None:
        return options[int(rng.integers(len(options)))]
    return options[int(rng.choice(len(options), p=np.array(weights) / sum(weights)))]


def ask(wordings: tuple[str, ...], sample: Sample, rng: np.random.Generator, target: str = "") -> str:
    """A question in one of the wordings; now and then in lower case or without its full stop, as people type."""
    text = with_articles(choose(wordings, rng).format(t=target, m=choose((form(sample), "image", "scan"), rng)))
    if rng.random() < 0.2:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip(".?")
    return text


def with_articles(text: str) -> str:
    """ "a" becomes "an" where a vowel follows, also where one is only spoken (an MRI)."""
    return re.sub(r"\ba (?=[aeiouAEIOU]|MRI\b|X-ray)", "an ", text)


def form(sample: Sample) -> str:
    """What to call the image."""
    return FORMS.get(sample.modality, "image")


def marked(words: str) -> str:
    """Words with the code that grounds them."""
    return f"{OPEN}{words}{CLOSE}{CODE}"


def outlined(words: str) -> str:
    """The answer to a request for one region."""
    return f"I have outlined the {marked(words)}."


def outlined_all(targets: tuple[Target, ...], indices: list[int]) -> str:
    """The same for several."""
    return f"I have outlined {listed([marked(targets[i].name) for i in indices])}."


def listed(items: list[str]) -> str:
    """ "the a, the b and the c"."""
    named = [f"the {item}" for item in items]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
