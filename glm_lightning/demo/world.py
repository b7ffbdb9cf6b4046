"""A generator of unlimited conversations of a shop assistant: attributes in, advertising copy out, and small talk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random

from glm_lightning.demo.lexicon import Language, Line
from glm_lightning.demo.voices import Voice
from glm_lightning.types import Conversation, Message


@dataclass(frozen=True, slots=True)
class Product:
    """A product of one line: its type, and its other attributes in the order a customer wrote them."""

    line: Line
    type: str
    attributes: tuple[tuple[str, str], ...]

    def prompt(self, type_key: str) -> str:
        """The attributes as ``类型#裙*材质#棉``."""
        return "*".join(f"{key}#{value}" for key, value in ((type_key, self.type), *self.attributes))

    def recoloured(self, key: str, colour: str) -> Product:
        """The same product in another colour."""
        return replace(self, attributes=tuple((k, colour if k == key else v) for k, v in self.attributes))


@dataclass(frozen=True, slots=True)
class World:
    """One language, one voice, what is on sale and what is talked about."""

    language: Language
    voice: Voice
    catalogue: tuple[Line, ...]  # each equally likely; a line may stand here more than once
    scenes: Mapping[str, float]  # acts joined by "+" -> weight
    attributes: tuple[int, int] = (2, 5)  # fewest and most attributes beside the type

    def conversations(self, random: Random) -> Iterator[Conversation]:
        """Conversations without end; equal states of ``random`` give equal conversations."""
        scenes, weights = list(self.scenes), list(self.scenes.values())
        while True:
            yield self._play(random.choices(scenes, weights)[0].split("+"), random)

    def product(self, random: Random) -> Product:
        """A product with attributes in a random order."""
        line = random.choice(self.catalogue)
        count = random.randint(self.attributes[0], min(self.attributes[1], len(line.values)))
        keys = random.sample(list(line.values), count)
        return Product(
            line, random.choice(list(line.counters)), tuple((k, random.choice(line.values[k])) for k in keys)
        )

    def advertise(self, product: Product) -> str:
        """The voice's copy for a product."""
        voice, line = self.voice, product.line
        opening = voice.opening.get(line.name, voice.opening[""])
        parts = [opening.format(counter=line.counters[product.type], type=product.type)]
        attributes = list(product.attributes)
        if not voice.keeps_order:
            attributes.sort(key=lambda attribute: list(voice.sentences).index(attribute[0]))
        parts += [self._sentence(key, value) for key, value in attributes]
        parts.append(voice.closing.get(line.name, voice.closing[""]))
        return voice.joint.join(part for part in parts if part)

    def _sentence(self, key: str, value: str) -> str:
        sentence = self.voice.sentences.get(key) or self.voice.sentences[""]
        return sentence.format(key=key, value=value, note=self.voice.notes.get(key, {}).get(value, ""))

    def _play(self, acts: list[str], random: Random) -> Conversation:
        product = self.product(random)
        if "recolour" in acts:
            product = self._coloured(product, random)
        messages: list[Message] = []
        for act in acts:
            if act == "recolour":
                product = product.recoloured(self.language.colour_key, self._colour(product, random))
            question, answer = self.exchange(act, product, random)
            messages += [Message("user", question), Message("assistant", answer)]
        return Conversation(tuple(messages))

    def exchange(self, act: str, product: Product, random: Random) -> tuple[str, str]:
        """A question and its answer; ``act`` is one of those of the language."""
        parts = [random.choice(options) for options in self.language.acts[act]]
        given = dict(product.attributes)
        material = given.get(self.language.material_key) or random.choice(
            product.line.values[self.language.material_key]
        )
        words = {
            "product": product.prompt(self.language.type_key),
            "type": product.type,
            "material": material,
            "colour": given.get(self.language.colour_key) or self._colour(product, random),
            "washing": self.voice.washing.get(material, self.voice.washing[""]),
            "word": parts[0],
        }
        question = "".join(parts).format(**words)
        if act in ("copy", "recolour"):
            return question, self.advertise(product)
        return question, self.voice.replies[act].format(**words)

    def _coloured(self, product: Product, random: Random) -> Product:
        key = self.language.colour_key
        if key in dict(product.attributes):
            return product
        return replace(product, attributes=(*product.attributes, (key, self._colour(product, random))))

    def _colour(self, product: Product, random: Random) -> str:
        """A colour that the product does not have yet."""
        key = self.language.colour_key
        given = dict(product.attributes).get(key)
        return random.choice([colour for colour in product.line.values[key] if colour != given])
