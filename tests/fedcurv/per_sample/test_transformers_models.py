"""Models of transformers, with adapters of PEFT too: tiny, random, against single samples."""

import pytest
import torch
from torch import nn

from fedcurv import fisher_diagonal

transformers = pytest.importorskip("transformers")

DOUBLE = torch.float64
LENGTH, CLASSES = 8, 3
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT_LIKE = {**SIZES, "intermediate_size": 24, "vocab_size": 30, "max_position_embeddings": 20}


def bert(**options):
    config = transformers.BertConfig(**BERT_LIKE, num_labels=CLASSES, **options)
    return transformers.BertForSequenceClassification(config)


def roberta():
    config = transformers.RobertaConfig(**BERT_LIKE, num_labels=CLASSES, pad_token_id=0)
    return transformers.RobertaForSequenceClassification(config)


def distilbert():
    config = transformers.DistilBertConfig(
        vocab_size=30, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=CLASSES
    )
    return transformers.DistilBertForSequenceClassification(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=20, pad_token_id=0,
        num_labels=CLASSES, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return transformers.GPT2ForSequenceClassification(config)


def adapted(model, *targets):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules=list(targets), task_type="SEQ_CLS", init_lora_weights=False
    )
    return peft.get_peft_model(model, config)


MODELS = {
    "BERT": bert,
    "BERT, eager attention": lambda: bert(attn_implementation="eager"),
    "RoBERTa": roberta,
    "DistilBERT": distilbert,
    "GPT-2": gpt2,
    "BERT, LoRA": lambda: adapted(bert(), "query", "value"),
    "GPT-2, LoRA": lambda: adapted(gpt2(), "c_attn"),
}


def batch(samples):
    lengths = torch.randint(LENGTH - 3, LENGTH + 3, (samples,))  # half of them are whole
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids = torch.randint(2, 30, (samples, LENGTH)) * mask
    labels = torch.randint(0, CLASSES, (samples,))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def one_by_one(model, batches):
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    squares = {name: torch.zeros_like(p) for name, p in parameters.items()}
    number = 0
    for several in batches:
        for n in range(len(several["labels"])):
            inputs = {name: value[n : n + 1] for name, value in several.items()}
            labels = inputs.pop("labels")
            loss = nn.functional.cross_entropy(model(**inputs).logits, labels)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for square, gradient in zip(squares.values(), gradients, strict=True):
                square += 0 if gradient is None else gradient**2
            number += 1
    return {name: square / number for name, square in squares.items()}


@pytest.mark.parametrize("name", MODELS)
def test_they_are_right_and_taken_at_once(name, caplog, replayed):
    torch.manual_seed(0)
    model = MODELS[name]().to(DOUBLE).eval()
    batches = [batch(10), batch(7)]
    with caplog.at_level("INFO", "fedcurv"):
        fisher_diagonal(model, batches)
    passes = []
    count = model.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    got = fisher_diagonal(model, batches)
    count.remove()
    for parameter, one in one_by_one(model, batches).items():
        torch.testing.assert_close(got[parameter], one, rtol=1e-9, atol=1e-13)
    assert any(one.any() for one in got.values())
    assert sum(passes) <= 8  # of 17 samples: two ways in each batch, and a look at each
    assert not replayed and "fedcurv" not in {
        record.name.split(".")[0] for record in caplog.records
    }


@pytest.mark.parametrize("name", ["BERT", "GPT-2"])
def test_the_expectation_over_classes_is_the_mean_of_all_labels(name):
    torch.manual_seed(0)
    model, several = MODELS[name]().to(DOUBLE).eval(), batch(5)
    got = fisher_diagonal(model, [several], kind="exact")
    expected = {parameter: torch.zeros_like(one) for parameter, one in got.items()}
    for n in range(5):
        one = {key: value[n : n + 1] for key, value in several.items()}
        inputs = {key: value for key, value in one.items() if key != "labels"}
        for label, p in enumerate(model(**inputs).logits.softmax(1)[0].tolist()):
            squares = one_by_one(model, [{**one, "labels": torch.tensor([label])}])
            for parameter, square in squares.items():
                expected[parameter] += p * square / 5
    for parameter, one in expected.items():
        torch.testing.assert_close(got[parameter], one, rtol=1e-8, atol=1e-13)
