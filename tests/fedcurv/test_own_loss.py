"""Models that compute a loss of a batch's labels themselves: is it that of their logits?"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedcurv import fisher_diagonal
from fedcurv.private_fisher import private_fisher_diagonal

SAMPLES, STEPS, WORDS = 6, 5, 11


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


class Model(nn.Module):
    """Predicts a word for each word, and its own loss of labels if there are any."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 6), nn.Linear(6, WORDS)

    def logits(self, input_ids):
        return self.head(self.words(input_ids).cumsum(1))

    def loss(self, logits, labels):
        return functional.cross_entropy(logits.movedim(-1, 1), labels)

    def forward(self, input_ids, labels=None):
        logits = self.logits(input_ids)
        return Output(None if labels is None else self.loss(logits, labels), logits)


class NextWord(Model):
    def loss(self, logits, labels):
        return super().loss(logits[:, :-1], labels[:, 1:])


class FromLabels(Model):
    """Is given the right words so far, as a decoder is, and the input's own without labels."""

    def forward(self, input_ids, labels=None):
        before = input_ids if labels is None else labels.roll(1, 1)
        logits = self.logits(before)
        return Output(None if labels is None else self.loss(logits, labels), logits)


class Doubled(Model):
    def loss(self, logits, labels):
        return 2 * super().loss(logits, labels)


class Draws(Model):
    def loss(self, logits, labels):
        return super().loss(logits, labels) * torch.rand(())


class Fails(Model):
    def loss(self, logits, labels):
        raise NotImplementedError


class InSinglePrecision(Model):
    """Computes its loss so whatever its own type, as DeBERTa does."""

    def loss(self, logits, labels):
        return super().loss(logits.float(), labels)


class OfBits(Model):
    def logits(self, input_ids):
        return super().logits(input_ids).mean(1)

    def loss(self, logits, labels):
        return functional.binary_cross_entropy_with_logits(logits, labels)


def batch(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    words = torch.randint(0, WORDS, (SAMPLES, STEPS))
    return {"input_ids": words, "labels": torch.randint(0, WORDS, (SAMPLES, STEPS))}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NextWord, r"moves the labels by one place.*\[:, :-1\].*batch\['labels'\]\[:, 1:\]"),
        (FromLabels, r"makes inputs of the labels.*model\(\*\*batch\)\.logits, targets='labels'"),
        (Doubled, "another loss.*targets='labels' if they are right as they stand"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"likelihood": nn.CrossEntropyLoss()}])
def test_labels_that_the_model_takes_otherwise_than_they_stand_are_refused(model, message, options):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=f"batch 0: .*{model.__name__}.*{message}"):
        fisher_diagonal(model(), [batch()], **options)
    with pytest.raises(ValueError, match=f"batch 0: .*{model.__name__}.*{message}"):
        private_fisher_diagonal(model(), [batch()], clip=1.0, noise_multiplier=1.0, **options)


@pytest.mark.parametrize(
    ("likelihood", "loss"),
    [
        ("multilabel", functional.binary_cross_entropy_with_logits),
        ("gaussian", functional.mse_loss),
    ],
)
def test_one_hot_targets_of_another_loss_are_not_taken_for_classes(likelihood, loss):
    model = OfBits()
    model.loss = loss
    labels = functional.one_hot(torch.arange(SAMPLES), WORDS).float()
    given = batch() | {"labels": labels}
    with pytest.raises(ValueError, match=f"batch 0: .*give likelihood='{likelihood}'"):
        fisher_diagonal(model, [given])
    fisher_diagonal(model, [given], likelihood=likelihood)


def test_what_the_message_says_is_right():
    torch.manual_seed(0)
    model, given = NextWord().double(), batch()
    got = fisher_diagonal(
        model,
        [given],
        forward=lambda model, batch: model(batch["input_ids"]).logits[:, :-1],
        targets=lambda batch: batch["labels"][:, 1:],
    )
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(SAMPLES):
        mean = model(**{name: values[i : i + 1] for name, values in given.items()}).loss
        gradients = torch.autograd.grad(mean * (STEPS - 1), list(model.parameters()))
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += gradient.square() / SAMPLES
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


@pytest.mark.parametrize("model", [Model, Draws, Fails])
def test_a_loss_that_is_that_of_the_logits_or_says_nothing_is_no_reason(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fisher_diagonal(model(), [batch()])
    torch.set_rng_state(before)
    ignored = batch()
    ignored["labels"][:, 2:] = -100
    fisher_diagonal(model(), [ignored])


def test_a_loss_of_less_precision_than_the_logits_is_compared_by_its_own():
    torch.manual_seed(0)
    fisher_diagonal(InSinglePrecision().double(), [batch()])


def test_labels_out_of_range_are_refused_before_the_model_is_asked():
    class Never(Model):
        def loss(self, logits, labels):
            pytest.fail("on a GPU a label out of range ends the process")

    given = batch()
    given["labels"][0, 0] = WORDS
    with pytest.raises(ValueError, match=f"batch 0: expected labels from 0 to .*got {WORDS}"):
        fisher_diagonal(Never(), [given])


def test_a_model_that_fails_is_named_with_its_batch_as_before():
    class Broken(Model):
        def logits(self, input_ids):
            return self.head(input_ids)

    with pytest.raises(RuntimeError, match=r"batch 0: the model .* fails on inputs int64"):
        fisher_diagonal(Broken(), [batch()])


def test_who_says_what_the_targets_are_is_believed():
    torch.manual_seed(0)
    model = NextWord()
    as_they_stand = fisher_diagonal(model, [batch()], targets="labels")
    plain = Model()
    plain.load_state_dict(model.state_dict())
    for name, value in fisher_diagonal(plain, [batch()]).items():
        assert torch.equal(value, as_they_stand[name])


def test_models_of_transformers_are_known_by_their_loss():
    transformers = pytest.importorskip("transformers", reason="in the extra dev-apps")
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=8, n_layer=1, n_head=2, n_positions=STEPS, **special
    )
    words = batch()["input_ids"]
    given = {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words}
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel .*moves the labels by one place"):
        fisher_diagonal(transformers.GPT2LMHeadModel(config), [given])
    fisher_diagonal(
        transformers.GPT2ForTokenClassification(config), [given | {"labels": words % 2}]
    )
    small = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(vocab_size=WORDS, **small, **heads, **special)
    config.decoder_start_token_id = 0
    given["labels"] = words.flip(1)  # without labels BART takes its inputs for them
    with pytest.raises(ValueError, match=r"BartForConditionalGeneration .*inputs of the labels"):
        fisher_diagonal(transformers.BartForConditionalGeneration(config), [given])
