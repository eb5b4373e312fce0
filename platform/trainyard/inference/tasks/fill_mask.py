"""Fill-mask: the most probable tokens for each mask of a text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from trainyard.errors import UserError
from trainyard.inference.parameters import Strict, Truncation, text_of
from trainyard.inference.predictor import Predictor
from trainyard.inference.request_tokens import Item
from trainyard.inference.row_limits import Budget


@dataclass(frozen=True, slots=True)
class _Masks:
    """Masks of one text, and the tokens that may replace a mask."""

    places: NDArray[np.intp]
    """Positions of the masks among the row's tokens, [masks]."""
    top_k: int
    targets: NDArray[np.int64] | None
    """Candidate token ids; None for the whole vocabulary."""


@dataclass(frozen=True, kw_only=True)
class FillMaskParameters(Strict):
    """Parameters of a request."""

    top_k: Annotated[int, Ge(1)] = 5
    """Number of proposals per mask."""
    targets: list[str] | str | None = None
    """Candidate words. Default: the whole vocabulary. Only the first token of a word counts."""
    truncation: Truncation = False
    """Truncate texts that are too long for the model instead of refusing them."""


class FillMask(Predictor):
    """Proposals, best first; one list per mask if a text has several masks."""

    task = "fill-mask"
    auto_model = "AutoModelForMaskedLM"
    architectures = ("ForMaskedLM",)
    parameters = FillMaskParameters
    example: Mapping[str, Any] = {"inputs": "Trains run on [MASK].", "parameters": {}}

    def check_model(self) -> None:
        if self.tokenizer.mask_token_id is None:
            raise UserError(f"the tokenizer has no mask token, which {self.task} needs")
        self.example = {"inputs": f"Trains run on {self.tokenizer.mask_token}.", "parameters": {}}

    def encode(self, inputs: list[Any], parameters: FillMaskParameters) -> list[Item]:
        """Build one row per text, with the positions of its masks.

        Raises:
            UserError: A text has no mask, or the targets have no token.
        """
        mask = self.tokenizer.mask_token
        texts = [text_of(value) for value in inputs]
        proposals = Budget(self.limits)
        targets = self._target_ids(parameters)
        each = min(parameters.top_k, len(self.tokenizer) if targets is None else len(targets))
        tokens = self.tokenize(texts, truncation=parameters.truncation)
        items = []
        for row, cut in zip(self.rows_of(tokens), tokens.truncated, strict=True):
            ids = np.array(row.inputs["input_ids"])
            places = np.flatnonzero(ids == self.tokenizer.mask_token_id)
            if not len(places):
                raise UserError(
                    f"the text has no {mask}"
                    + (" left after truncation" if cut else "")
                    + f"; put {mask} where a word is to be proposed"
                )
            proposals.spend(each * len(places), "proposals")
            row.wanted = _Masks(places, each, targets)
            items.append(Item([row], cut, ids))
        return items

    def _target_ids(self, parameters: FillMaskParameters) -> Any:
        if parameters.targets is None:
            return None
        given = parameters.targets
        words = [given] if isinstance(given, str) else given
        Budget(self.limits).spend(len(words), "targets")
        ids = []
        for target in words:
            known = self.tokenizer.convert_tokens_to_ids(text_of(target, "a target"))
            if known is None or known == self.tokenizer.unk_token_id:
                pieces = self.tokenizer(target, add_special_tokens=False)["input_ids"]
                if not pieces:
                    continue
                known = pieces[0]
            ids.append(known)
        if not ids:
            raise UserError("parameters.targets holds no word; send at least one")
        return np.unique(ids)

    def results(self, rows: Any, outputs: Any) -> list[Any]:
        """Return token ids and probabilities of each row's proposals, both [masks, top_k].

        Probabilities of the whole vocabulary for each mask would take too much memory.
        """
        logits = self.tokens_of(outputs.logits, rows)
        return [self._best(mine, row.wanted) for row, mine in zip(rows, logits, strict=True)]

    def _best(self, logits: Any, wanted: _Masks) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        import torch

        scores = logits[torch.from_numpy(wanted.places)].float().softmax(dim=-1)
        if wanted.targets is None:
            best, tokens = scores.topk(wanted.top_k)
            return tokens.cpu().numpy(), best.cpu().numpy()
        best, order = scores[:, torch.from_numpy(wanted.targets)].topk(wanted.top_k)
        return wanted.targets[order.cpu().numpy()], best.cpu().numpy()

    def decode(self, item: Item, results: list[Any], parameters: FillMaskParameters) -> Any:
        del parameters
        places = item.rows[0].wanted.places
        answers = [
            [
                self._proposal(item.context, place, int(token), float(score), len(places) == 1)
                for token, score in zip(tokens, scores, strict=True)
            ]
            for place, tokens, scores in zip(places, *results[0], strict=True)
        ]
        return answers if answers[1:] else answers[0]

    def _proposal(
        self, ids: Any, place: int, token: int, score: float, only: bool
    ) -> dict[str, Any]:
        filled = ids.copy()
        filled[place] = token
        filled = filled[filled != self.tokenizer.pad_token_id]
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token]),
            # Other masks stay visible in the text.
            "sequence": self.tokenizer.decode(filled, skip_special_tokens=only),
        }
