"""Official tokenizer files as fast tokenizers of transformers: what other libraries get, and what `save` writes.

ChatGLM2, ChatGLM3 and GLM-4 come out exact. ChatGLM-6B does almost: sentencepiece adds the scores of pieces in float32
and `tokenizers` in float64, so that of two cuts with one score (``.....`` as 2 + 3 or 3 + 2) the other may win, and
stacked combining marks are normalised differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from glm_lightning.tokenizers import ranks
from glm_lightning.tokenizers.ranks import merges
from glm_lightning.tokenizers.release import ROLES, Generation, Release
from glm_lightning.tokenizers.whitespace import PIECES

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_NEVER = -1e6  # a score with which no piece is ever chosen

# What official tokenizers put around a text that is encoded on its own.
_AROUND: Mapping[Generation, tuple[str, str]] = {
    "chatglm": ("$A [gMASK] <sop>", "$A $B [gMASK] <sop> <eop>"),
    "chatglm2": ("[gMASK] sop $A", "[gMASK] sop $A $B </s>"),
    "chatglm3": ("[gMASK] sop $A", "[gMASK] sop $A $B </s>"),
    "glm4": ("[gMASK] <sop> $A", "[gMASK] <sop> $A $B <|endoftext|>"),
}


def fast(release: Release) -> PreTrainedTokenizerFast:
    """The tokenizer of a release with its control tokens, roles and chat template.

    Raises:
        UserError: the file cannot be read.
    """
    backend = ranks.backend(release.file) if release.generation == "glm4" else _from_pieces(release)
    appended = release.appended(backend.get_vocab_size())
    # "sop" and "eop" of ChatGLM2 and 3 are also parts of words ("philosophy"); as words of their own they are control
    # tokens here, or chat templates could not write them.
    backend.add_special_tokens([AddedToken(name, special=True, single_word=name.isalpha()) for name in appended])
    assert all(backend.token_to_id(name) == i for name, i in appended.items()), (
        "a control token is a piece of text, too"
    )
    single, pair = _AROUND[release.generation]
    around = [(name, backend.token_to_id(name)) for name in pair.split() if not name.startswith("$")]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=around)
    controls = [token.content for _, token in sorted(backend.get_added_tokens_decoder().items())]
    roles = ROLES[release.generation]
    settings = {k: release.settings[k] for k in ("chat_template", "model_max_length") if k in release.settings}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side="left",
        extra_special_tokens=[name for name in controls if name not in roles.values()],
        **roles,
        **settings,
    )


def _from_pieces(release: Release) -> Tokenizer:
    # Its package gives scores and kinds, but not the table of its normaliser.
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto.FromString(release.file.read_bytes())
    backend = Tokenizer(_unigram(proto) if proto.trainer_spec.model_type == 1 else _bpe(proto))
    blanks = release.generation == "chatglm"
    backend.normalizer = normalizers.Sequence([*_spelled(blanks), *_normalized(proto.normalizer_spec)])
    backend.decoder = decoders.Sequence(
        [
            *(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)),
            *(decoders.Replace(name, text) for name, text in (PIECES if blanks else {}).items()),
        ]
    )
    backend.add_special_tokens([piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL)])
    return backend


def _unigram(proto: Any) -> models.Model:
    """Scores as sentencepiece sees them.

    A user-defined piece beats all other ways to cut its characters. Names of bytes and of control tokens are no pieces
    of text; their score here may be the lowest, for it only shifts what a character without a piece costs, and such
    a character is cut off in one way only.
    """
    best = max(piece.score for piece in proto.pieces if piece.type == _NORMAL)
    vocab = [(piece.piece, _score(piece, best)) for piece in proto.pieces]
    return models.Unigram(vocab, unk_id=proto.trainer_spec.unk_id, byte_fallback=proto.trainer_spec.byte_fallback)


def _score(piece: Any, best: float) -> float:
    if piece.type == _USER_DEFINED:
        return len(piece.piece.encode()) * best - 0.1
    return float(piece.score) if piece.type == _NORMAL else _NEVER


def _bpe(proto: Any) -> models.Model:
    """Every pair of pieces that make a third one, by the rank of what they make."""
    ids = {piece.piece: i for i, piece in enumerate(proto.pieces) if piece.type == _NORMAL}
    by_score = sorted(ids, key=lambda piece: -proto.pieces[ids[piece]].score)
    return models.BPE(
        {piece.piece: i for i, piece in enumerate(proto.pieces)},
        merges(by_score, ids),
        unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _spelled(blanks: bool) -> list[Any]:
    return [normalizers.Replace(text, name) for name, text in PIECES.items()] if blanks else []


def _normalized(spec: Any) -> list[Any]:
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        # Alone it knows no rule whose left side is longer than six bytes: half-width voiced kana, Hangul in parts.
        steps += [normalizers.NFC(), normalizers.Precompiled(spec.precompiled_charsmap), normalizers.NFC()]
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"\A | \z"), "")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return [*steps, normalizers.Replace(" ", "▁")]
