"""The models that are served: one network, and adapters over it that are loaded when they are first asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from glm_lightning.files import digest
from glm_lightning.inference import adapters
from glm_lightning.inference.batch import Speaker
from glm_lightning.inference.generation import context_of, unwrapped
from glm_lightning.inference.loading import UNLIMITED, Found, adapted, bare, resolve, with_adapter, words
from glm_lightning.inference.prompts import prompt_ids
from glm_lightning.inference.sampling import Sampling
from glm_lightning.models.quantization import Quantize
from glm_lightning.models.quiet import quiet
from glm_lightning.models.source import Hub, WeightsDtype
from glm_lightning.models.twin import twin
from glm_lightning.serving.threads import apart
from glm_lightning.templates import Template
from glm_lightning.tokenizers import Tokenizer
from glm_lightning.types import UserError

_LOG = logging.getLogger(__name__)


class UnknownModelError(Exception):
    """No model of that name is served, or its adapter cannot be used."""


@dataclass(frozen=True, eq=False)
class Served:
    """A model by its name: who speaks, with which words."""

    name: str
    speaker: Speaker
    tokenizer: Tokenizer
    template: Template
    max_context: int
    stop_ids: tuple[int, ...]
    sampling: Sampling
    fingerprint: str

    def text_ids(self, text: str) -> list[int]:
        """Ids of a text that is to be gone on with: as a document is learned, without its end.

        Raises:
            UserError: the tokenizer does not say how a text begins and ends.
        """
        *begun, _ = self.template.document(text)
        return prompt_ids([begun], self.tokenizer)[0]


@dataclass(frozen=True)
class _Offer:
    """A model that can be loaded; ``stamp`` changes when another adapter is put in its place."""

    found: Found
    stamp: int = 0


@dataclass(frozen=True)
class _Loaded:
    offer: _Offer
    served: Served


@final
class Library:
    """Finds models by name.

    Args:
        source: what `glm_lightning.load` takes: a run, an adapter, a model folder, a name on a hub, or ``demo``.
        folder: one with adapters, or runs that made them; looked into again at every request.
        name: of what ``source`` is; None is the name of its folder.
        hub: where ``source`` is looked up.
        dtype: of the weights; None is as `glm_lightning.load` chooses.
        quantize: hold the linear layers in so few bits.
        device: where the network lies; None is the GPU, if there is one.
        max_context: longest prompt and answer together; None is what the network was made for.
        max_loaded: adapters that are kept in memory; of more, the one that was not asked for the longest is given up.

    Raises:
        UserError: there is nothing to load, or it does not fit together; before any weight is read.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        folder: Path | None = None,
        name: str | None = None,
        hub: Hub | None = None,
        dtype: WeightsDtype | None = None,
        quantize: Quantize | Literal["none"] | None = None,
        device: str | None = None,
        max_context: int | None = None,
        max_loaded: int = 8,
    ) -> None:
        quiet()
        self._found = resolve(source, hub=hub)
        self._dtype, self._quantize, self._device = dtype, quantize, device
        self._max_context, self._max_loaded = max_context, max_loaded
        self._folder = folder
        self.name = name or _name_of(self._found.base.path if self._found.adapter is None else source)
        self.created = int(time.time())
        self._network: Any = None
        self._loaded: dict[str, _Loaded] = {}
        self._seen: dict[Path, tuple[int, _Offer | None]] = {}
        self._lock = asyncio.Lock()
        if folder is not None and not folder.is_dir():
            raise UserError(f"--adapters is {str(folder)!r}: there is no such folder; give one that holds adapters")

    def check(self) -> list[str]:
        """What is served; adapters that cannot be are named in the log. No weight is read.

        Raises:
            UserError: the network or its words cannot be loaded.
        """
        self._found.base.check()
        words(self._found.base, self._found.files)
        return self.names()

    def load(self) -> Served:
        """Read the weights; what is served under `name`."""
        self._network = bare(self._found.base, dtype=self._dtype, quantize=self._quantize, device=self._device)
        self._loaded[self.name] = self._served(self.name, self._own()[self.name])
        return self._loaded[self.name].served

    def names(self) -> list[str]:
        """All models, the main one first."""
        return list(self._offers())

    async def get(self, name: str | None) -> Served:
        """The model of that name, loaded now if it was not; None is the main one.

        Raises:
            UnknownModelError: there is none, or it cannot be used.
        """
        wanted = name or self.name
        offer = self._offers().get(wanted)
        if offer is None:
            raise UnknownModelError(f"The model {wanted!r} does not exist; there are: {', '.join(self.names())}.")
        async with self._lock:
            known = self._loaded.pop(wanted, None)
            if known is None or known.offer.stamp != offer.stamp:
                known = await asyncio.wrap_future(apart(self._served, wanted, offer))
            self._loaded[wanted] = known  # the one asked for last stands last
            self._forget()
            return known.served

    def _forget(self) -> None:
        """Give up adapters beyond so many; rows that they answer keep theirs until they have ended."""
        idle = [name for name in self._loaded if name != self.name]
        for name in idle[: max(len(idle) - self._max_loaded, 0)]:
            del self._loaded[name]

    def _own(self) -> dict[str, _Offer]:
        found = self._found
        own = {self.name: _Offer(found)}
        if found.adapter is not None:
            own.setdefault(_name_of(found.base.path), _Offer(Found(found.base, None, found.base.location)))
        return own

    def _offers(self) -> dict[str, _Offer]:
        """What there is now, by name."""
        offers = self._own()
        for entry in sorted(self._folder.iterdir()) if self._folder is not None else ():
            if entry.is_dir() and (offer := self._offer(entry)) is not None:
                offers.setdefault(entry.name, offer)
        return offers

    def _offer(self, entry: Path) -> _Offer | None:
        """The adapter in a folder; None if there is none that belongs on the network."""
        try:
            folder = adapters.folder_of(entry)
        except UserError:
            return None  # something else lies there
        stamp = max((file.stat().st_mtime_ns for file in folder.iterdir()), default=0)
        known = self._seen.get(entry)
        if known is None or known[0] != stamp:
            known = self._seen[entry] = (stamp, self._checked(entry.name, folder, stamp))
        return known[1]

    def _checked(self, name: str, folder: Path, stamp: int) -> _Offer | None:
        base = self._found.base
        try:
            return _Offer(with_adapter(Found(base, None, base.location), folder), stamp)
        except UserError as error:
            _LOG.warning("%s is not served: %s", name, error)
            return None

    def _served(self, name: str, offer: _Offer) -> _Loaded:
        base, folder, files = offer.found
        try:
            network = self._network if folder is None else adapted(twin(self._network), folder)
            tokenizer, template = words(base, files)
        except UserError as error:
            if name == self.name:
                raise
            _LOG.error("%s cannot be served: %s", name, error)
            raise UnknownModelError(f"The model {name!r} cannot be used; the server's log says why.") from error
        served = Served(
            name=name,
            speaker=Speaker(network, pad_id=tokenizer.pad_id),
            tokenizer=tokenizer,
            template=template,
            max_context=self._max_context or context_of(network) or UNLIMITED,
            stop_ids=tuple(tokenizer.control_id(token) for token in template.stop_tokens),
            sampling=_sampling_of(network),
            fingerprint=f"fp_{digest(self._found.base.fingerprint, str(folder), offer.stamp)[:12]}",
        )
        return _Loaded(offer, served)


def _name_of(path: str | Path) -> str:
    """The name of a folder, or a name on a hub as it is."""
    return Path(path).expanduser().resolve().name if Path(path).expanduser().is_dir() else str(path)


def _sampling_of(network: Any) -> Sampling:
    """How the makers of the network want it to be drawn from, if they say so; else as OpenAI does."""
    own = unwrapped(network).generation_config
    if not own.do_sample:
        return Sampling(temperature=1.0)
    return Sampling(temperature=1.0 if own.temperature is None else own.temperature, top_p=own.top_p or 1.0)
