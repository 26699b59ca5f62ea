"""Our shapes through transformers' Auto classes."""

from __future__ import annotations

import pytest
import torch
import transformers

import terrazzo.hf
from terrazzo.checkpoint import load_config, load_model, save_model
from terrazzo.errors import InputError
from terrazzo.nn import Encoder, MaskedLM, bert, modernbert, mosaicbert
from terrazzo.packed import Packed

VOCAB = 99
SMALL = {"width": 32, "depth": 2, "num_heads": 4, "mlp_width": 48}
SHAPES = {
    "mosaicbert": mosaicbert("tiny", VOCAB, **SMALL),
    "causal": bert("tiny", VOCAB, **SMALL, causal=True),
    "rms": mosaicbert("tiny", VOCAB, **SMALL, norm="rms", head_bias=False, token_types=0),
}
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def perturb(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


def padded_batch():
    mask_BS = torch.arange(40) < torch.tensor([17, 1, 40, 9])[:, None]
    return torch.randint(5, VOCAB, mask_BS.shape), mask_BS, torch.randint(0, 2, mask_BS.shape)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_auto_classes_give_the_packed_numbers(shape, tmp_path):
    ours = perturb(MaskedLM(SHAPES[shape]))
    folder = save_model(tmp_path / "model", ours)
    ids_BS, mask_BS, types_BS = padded_batch()
    batch = Packed.from_padded(ids_BS, mask_BS, types_BS)
    masked_lm = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    encoder, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert isinstance(masked_lm, terrazzo.hf.TerrazzoForMaskedLM) and isinstance(encoder, terrazzo.hf.TerrazzoModel)
    inputs = {"input_ids": ids_BS, "attention_mask": mask_BS.long(), "token_type_ids": types_BS}
    logits, hidden = masked_lm(**inputs).logits, encoder.eval()(**inputs).last_hidden_state
    assert logits.shape == (4, 40, VOCAB)
    torch.testing.assert_close(logits[mask_BS], ours(batch), rtol=0, atol=1e-5)
    torch.testing.assert_close(hidden[mask_BS], ours.encoder(batch), rtol=0, atol=1e-5)
    assert not hidden[~mask_BS].any()


def test_saved_by_transformers_opens_here(tmp_path):
    ours = perturb(MaskedLM(SHAPES["mosaicbert"]))
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(save_model(tmp_path / "model", ours))
    theirs.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert again.config == ours.config
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_loss_is_the_mean_over_labels_and_trains(tmp_path):
    model = perturb(terrazzo.hf.TerrazzoForMaskedLM(terrazzo.hf.TerrazzoConfig(encoder=SHAPES["mosaicbert"])))
    ids_BS, mask_BS, _ = padded_batch()
    labels_BS = torch.full_like(ids_BS, -100)
    labels_BS[0, 3], labels_BS[2, 39] = 7, 11
    output = model(ids_BS, mask_BS, labels=labels_BS)
    chosen = torch.stack([output.logits[0, 3], output.logits[2, 39]]).log_softmax(-1)
    torch.testing.assert_close(output.loss, -(chosen[0, 7] + chosen[1, 11]) / 2)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_head_that_the_folder_lacks_is_drawn_anew(tmp_path):
    folder = save_model(tmp_path / "model", perturb(Encoder(SHAPES["mosaicbert"])))
    head = transformers.AutoModelForMaskedLM.from_pretrained(folder).head
    assert head.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not head.bias.any() and not head.dense.bias.any() and (head.norm.weight == 1).all()


def test_fresh_model_is_drawn_as_its_config_says():
    config = terrazzo.hf.TerrazzoConfig(encoder=modernbert("tiny", VOCAB))
    block = transformers.AutoModel.from_config(config).encoder.blocks[0]
    assert block.mlp.up.weight.std().item() == pytest.approx(0.0176, rel=0.05)
    assert block.mlp.down.weight.std().item() == pytest.approx(0.0176 / 8**0.5, rel=0.05)


def test_left_padding_and_unknown_fields_are_errors(tmp_path):
    folder = save_model(tmp_path / "model", Encoder(SHAPES["mosaicbert"]))
    model = transformers.AutoModel.from_pretrained(folder)
    ids_BS, mask_BS, _ = padded_batch()
    with pytest.raises(ValueError, match="right padding"):
        model(ids_BS, mask_BS.flip(1))
    text = (folder / "config.json").read_text().replace('"depth"', '"dept"')
    (folder / "config.json").write_text(text)
    for opener in (load_config, transformers.AutoModel.from_pretrained):
        with pytest.raises(InputError, match="'dept': did you mean 'depth'"):
            opener(folder)
