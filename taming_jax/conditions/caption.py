"""A condition on a caption: its words as ids, from a vocabulary that is learned from the data."""

import collections
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from taming_jax.conditions.condition import Condition, number_rows
from taming_jax.console import bar
from taming_jax.errors import ArgumentError, UserError, nearest, show
from taming_jax.first_stage import FirstStage

NOTHING, UNKNOWN = 0, 1  # ids: after a caption's end, and for a word outside of the vocabulary; others follow
WORDS = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption(Condition):
    """batch['caption'] [B,length] int32: the first words of a caption, in lower case.

    A record's text may hold several captions, one per line: training draws one of them, evaluation takes the first.
    """

    FEATURES = ("caption",)
    FIELDS = ("vocabulary", "max_words")
    LEARNED = ("vocabulary",)
    ARGUMENTS: ClassVar = {
        "caption": "Captions to be conditioned on, with commas between; in quotes where one has some."
    }
    WORD = "caption"
    ANNOTATES = True

    vocabulary: tuple[str, ...]

    @staticmethod
    def learn(config: ConfigDict, source) -> None:
        """Fills in the vocabulary: the most frequent words of the data, at most `max_vocabulary`."""
        counts, texts, quiet = collections.Counter(), source.texts("caption"), jax.process_index() > 0
        for text in bar(texts, "reading captions", total=len(source), unit="caption", leave=False, disable=quiet):
            counts.update(WORDS.findall(text.lower()))
        if not counts:
            raise UserError("cond.name='caption': the captions of the data hold no word")
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        config.cond.vocabulary = tuple(ranked[: config.cond.max_vocabulary])

    @classmethod
    def make(cls, config: ConfigDict, stage: FirstStage | None) -> "Caption":
        words = tuple(config.cond.vocabulary)
        return cls(length=config.cond.max_words, vocab_size=2 + len(words), vocabulary=words)

    def ids(self, frozen: dict, batch: dict) -> jax.Array:
        return batch["caption"]

    def shuffle(self, record: dict, rng: np.random.Generator) -> dict:
        lines = record["caption"].splitlines() or [""]
        return {**record, "caption": lines[rng.integers(len(lines))]}

    def see(self, record: dict, crop: tuple[float, ...], flip: bool) -> dict[str, np.ndarray]:
        first, *_ = record["caption"].splitlines() or [""]
        return {"caption": self.to_ids(first)}

    @functools.cached_property
    def word_ids(self) -> dict[str, int]:
        """The id of each learned word."""
        return {word: 2 + i for i, word in enumerate(self.vocabulary)}

    def to_ids(self, caption: str) -> np.ndarray:
        """A caption's ids, int32 [length]; words beyond that length are left out."""
        found = [self.word_ids.get(word, UNKNOWN) for word in WORDS.findall(caption.lower())][: self.length]
        return np.int32(found + [NOTHING] * (self.length - len(found)))

    def rows(self, size: tuple[int, int], caption: str | Sequence[str]) -> dict[str, np.ndarray]:
        """Raises ArgumentError for a caption without any learned word, which would ask for nothing."""
        asked = list(caption) if isinstance(caption, (list, tuple)) else [caption]
        if not all(isinstance(text, str) for text in asked):
            raise ArgumentError(f"caption={show(caption)}: it is a text, or several in a list")
        for text in asked:
            words = WORDS.findall(text.lower())
            if not self.word_ids.keys() & set(words):
                hint = nearest(words[0], self.vocabulary) if words else ""
                raise ArgumentError(f"caption={show(text)}: the transformer has learned none of its words{hint}")
        if not asked:
            raise ArgumentError("caption is empty: say what to paint")
        return number_rows([{"caption": self.to_ids(text)} for text in asked])

    def names(self, rows: dict[str, np.ndarray]) -> tuple[str, ...]:
        words = ("", "?", *self.vocabulary)
        return tuple(" ".join(filter(None, (words[number] for number in ids))) for ids in rows["caption"])
