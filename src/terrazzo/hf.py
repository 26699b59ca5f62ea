"""Our models in transformers: importing this module registers their Auto classes.

`AutoConfig`, `AutoModel` and `AutoModelForMaskedLM` then open folders of `model_type` "terrazzo". Padding exists only
at this edge: batches are packed on the way in and padded on the way out.

Shapes: B documents, S padded length, T real tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from terrazzo.config import from_dict, to_dict
from terrazzo.nn import Encoder, EncoderConfig, MaskedLMHead
from terrazzo.nn.initialise import initialise
from terrazzo.packed import Packed


class TerrazzoConfig(PreTrainedConfig):
    """A config.json of `model_type` "terrazzo"; `encoder` holds the fields of an `EncoderConfig`."""

    model_type = "terrazzo"
    encoder: dict[str, Any] | EncoderConfig | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.encoder = to_dict(self.encoder or EncoderConfig(vocab_size=30522))
        super().__post_init__(**kwargs)

    @property
    def architecture(self) -> EncoderConfig:
        """The encoder's own config.

        Raises:
            InputError: a field that it does not have, or a value that it refuses.
        """
        return from_dict(EncoderConfig, to_dict(self.encoder), "config.json, field 'encoder'")

    @property
    def vocab_size(self) -> int:
        return self.architecture.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.architecture.width

    @property
    def num_hidden_layers(self) -> int:
        return self.architecture.depth

    @property
    def num_attention_heads(self) -> int:
        return self.architecture.num_heads

    @property
    def max_position_embeddings(self) -> int:
        return self.architecture.max_len


class TerrazzoPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of both models."""

    config_class = TerrazzoConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: TerrazzoConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config.architecture)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embeddings.tokens

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (Encoder, MaskedLMHead)):
            initialise(module, self.config.architecture)
        elif not isinstance(module, (nn.Linear, nn.Embedding)):
            super()._init_weights(module)
        if isinstance(module, MaskedLMHead) and module.bias is not None:
            nn.init.zeros_(module.bias)


class TerrazzoModel(TerrazzoPreTrainedModel):
    """The encoder for padded batches."""

    _keys_to_ignore_on_load_unexpected = [r"^head\."]

    def __init__(self, config: TerrazzoConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Tensor, ...]:
        """Hidden states `(B, S, D)`, zero at padding.

        Raises:
            ValueError: padding that is not on the right.
        """
        batch, real_BS = pack(input_ids, attention_mask, token_type_ids)
        output = BaseModelOutput(last_hidden_state=pad(self.encoder(batch), real_BS))
        return output.to_tuple() if return_dict is False else output


class TerrazzoForMaskedLM(TerrazzoPreTrainedModel):
    """The encoder with its masked-language-model head, for padded batches."""

    def __init__(self, config: TerrazzoConfig) -> None:
        super().__init__(config)
        self.head = MaskedLMHead(config.architecture)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """Logits `(B, S, V)`, zero at padding, and with labels the mean cross-entropy over those that are not -100.

        Raises:
            ValueError: padding that is not on the right.
        """
        batch, real_BS = pack(input_ids, attention_mask, token_type_ids)
        logits_BSV = pad(self._logits(batch), real_BS)
        loss = None if labels is None else F.cross_entropy(logits_BSV.flatten(0, 1).float(), labels.flatten())
        output = MaskedLMOutput(loss=loss, logits=logits_BSV)
        return output.to_tuple() if return_dict is False else output

    def _logits(self, batch: Packed) -> Tensor:
        vocab_size = self.config.vocab_size
        bias = None if self.head.bias is None else self.head.bias[:vocab_size]
        return F.linear(self.head(self.encoder(batch)), self.encoder.embeddings.tokens.weight[:vocab_size], bias)


def pack(ids_BS: Tensor, mask_BS: Tensor | None, token_types_BS: Tensor | None) -> tuple[Packed, Tensor]:
    """The batch without its padding, and which positions are real, bool `(B, S)`."""
    real_BS = torch.ones_like(ids_BS, dtype=torch.bool) if mask_BS is None else mask_BS.bool()
    return Packed.from_padded(ids_BS, real_BS, token_types_BS), real_BS


def pad(values_T: Tensor, real_BS: Tensor) -> Tensor:
    """`(T, ...)` values at the real positions of a zero `(B, S, ...)` tensor."""
    padded = values_T.new_zeros(*real_BS.shape, *values_T.shape[1:])
    padded[real_BS] = values_T
    return padded


AutoConfig.register(TerrazzoConfig.model_type, TerrazzoConfig)
AutoModel.register(TerrazzoConfig, TerrazzoModel)
AutoModelForMaskedLM.register(TerrazzoConfig, TerrazzoForMaskedLM)
