"""Answers to the exercises of the notebooks, and the check that a reader calls.

The answers stand here and not in the notebooks, where readers would see them before they have looked for them.
"""

from dataclasses import dataclass

import numpy as np

from .errors import CipherDMError


@dataclass(frozen=True)
class Exercise:
    """One exercise and its answer.

    Attributes:
        right: a number, an array of them, or a text that the answer has to contain.
        within: how far each number may be from the right one, in its units.
        hint: what to think of, for whoever is wrong.
    """

    right: float | tuple[float, ...] | str
    hint: str
    within: float = 0.0

    def verdict(self, answer: object) -> str:
        """Return what the reader is told of an answer; `...` stands for none."""
        if answer is ...:
            return "No answer yet: put yours in place of the dots."
        if isinstance(self.right, str):
            return "Right." if self.right.casefold() in str(answer).casefold() else f"Not yet. {self.hint}"
        try:
            given, right = np.asarray(answer, float), np.asarray(self.right, float)
        except (TypeError, ValueError):
            return f"Not yet: {answer!r} is not made of numbers. {self.hint}"
        if given.size != right.size:
            return f"Not yet: {right.size} numbers are asked for, and these are {given.size}. {self.hint}"
        off = np.abs(given.ravel() - right.ravel())
        if (off <= self.within + 1e-9).all():
            return "Right."
        first = int(np.argmax(~(off <= self.within + 1e-9)))
        size = "large" if given.flat[first] > right.flat[first] else "small"
        return f"Not yet: {given.flat[first]:g} is too {size}. {self.hint}"


def check(exercise: str, answer: object) -> None:
    """Print whether an answer is right, or what is wrong with it.

    Args:
        exercise: notebook and exercise, such as "1.2".
        answer: the reader's; `...` while there is none.

    Raises:
        CipherDMError: there is no such exercise.
    """
    if exercise not in EXERCISES:
        raise CipherDMError(f"there is no exercise {exercise!r}; there are {', '.join(EXERCISES)}")
    print(EXERCISES[exercise].verdict(answer))


EXERCISES = {
    "0.1": Exercise("eleven", "Draw a caption with each of the words, and look."),
    "1.1": Exercise((0, 0, 0, 1), "Share [0, 0, 1, 1] and [0, 1, 0, 1], multiply, and open."),
    "1.2": Exercise((24_000, 24), "A party sends a word of 8 bytes for each number that it reshares."),
    "1.3": Exercise(61, "Dividing by 2 u is possible for the odd u; how often can what is left be halved?"),
    "2.1": Exercise(97.66, "How large is the word of a product, and what part of 2^32 is that?", 1.0),
    "2.2": Exercise(48, "Both ways multiply twice. How often does each truncate?"),
    "2.3": Exercise(0.25, "Count results that are more than 1 away from 96, over many numbers.", 0.02),
    "3.1": Exercise((24, 16), "How many products does each have, one after the other, at 8 messages each?"),
    "3.2": Exercise(1388, "That is a reciprocal and a product for each number.", 40),
    "3.3": Exercise("party 2", "Catch the CipherDMError, and take str(error)."),
    "4.1": Exercise(0.0136, "20 steps have 50 of the 1,000 t's between them. The first t is 950.", 0.0005),
    "4.2": Exercise(0.362, "now is kept[500], and then is kept[450].", 0.002),
    "5.1": Exercise(
        (780, 61), "Choices take 172 bytes each, products 52, sums 28; messages 32, 8 for each level of products, 5."
    ),
    "5.2": Exercise(728, "Two segments are enough. Which degree?"),
    "5.3": Exercise((0.41, 0.16), "A third of the messages are rounds, and each takes 20 ms.", 0.011),
    "6.1": Exercise(
        "computing, rounds, bytes", "Replace rounds, path_bytes or seconds of the cost, and compare `over(network)`."
    ),
    "6.2": Exercise("activation", "Take the table of the step over the WAN, by kind."),
    "6.3": Exercise("direct", "The border is where rounds times half a round trip are the seconds of computing."),
    "7.1": Exercise(9, "Where is the likeness below 40 first? `ddim.likeness` has it by step and digit."),
    "7.2": Exercise(10, "`cost.by_program()` has all steps of one digit, `ddim.about['rows'][0]` a step of ten.", 0.1),
    "7.3": Exercise(0, "Add both components of party 0 and the first of party 2, as whole numbers with a sign.", 1e-3),
    "8.1": Exercise((2.18, 1.22), "Divide the gain against Pade by the gain against the default.", 0.01),
    "8.2": Exercise(0, "`scipy.special.ive(k, 7)` is I_k(7) times e^-7."),
    "8.3": Exercise(0, "Subtract each row's maximum before the exponential."),
    "9.1": Exercise(144, 'Count `sampling.sampling_nodes(task.shape, "block")` of a task without guidance.'),
    "9.2": Exercise(9, "Divide what waits by what computes and sends."),
    "9.3": Exercise(2.04, "A `Picture(steps=10)` can be projected.", 0.1),
    "10.1": Exercise("party 2", "Restart party 2 with a file in which bob is missing, and ask as bob."),
    "10.2": Exercise("INVALID_ARGUMENT", "pphlo.convert takes a type and gives another."),
    "10.3": Exercise("keepalive", "See [timeouts] in the file of a party."),
    "11.1": Exercise((17.25, 12.25), "`views.cut_costs` has a row for each cut, and an option for pairs."),
    "11.2": Exercise(784, "Which two of three components does it hold, and what of the third?"),
    "11.3": Exercise(1.506, "The second truncation divides the error of the first.", 0.001),
    "12.1": Exercise(0.75, "Three signed components add up without a turn if two of them do.", 0.03),
    "12.2": Exercise(2.02, "What does a cut take in each ring?", 0.2),
    "12.3": Exercise("messages", "Look at the columns beside MB."),
    "13.1": Exercise("more", "Compare the layers whose share outside is above 0."),
    "14.1": Exercise((5_341_192, 163_848), "`h` has 2 bytes for each number, `noise` and `noisy` 4."),
    "14.2": Exercise(2.3994, "It increases everywhere: read a table of it from the right to the left.", 0.001),
    "14.3": Exercise(900, "What else is in the mean, and what scales it?"),
}
