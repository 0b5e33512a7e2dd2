"""What a model says of an image."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a model says of an image.

    label: the predicted class; of several labels the likeliest, "" if there is none.
    labels: all predicted classes, the likeliest first; one, unless the run's images may have
    several labels.
    probabilities: of every class, 0 to 1, in the order of ``Model.classes``.
    label_set: the classes it may be, the likeliest first; None without ``sets``.
    is_unknown: whether it is too unlike the run's images; False without ``reject``.
    score: how unlike them it is, the higher the less alike; None without ``reject``.
    """

    label: str
    labels: tuple[str, ...]
    probabilities: dict[str, float]
    label_set: tuple[str, ...] | None = None
    is_unknown: bool = False
    score: float | None = None

    @property
    def probability(self) -> float:
        """The probability of ``label``; 0 if there is none."""
        return self.probabilities.get(self.label, 0.0)
