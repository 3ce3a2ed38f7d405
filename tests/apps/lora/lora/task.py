"""Model and data. The texts are made up: each class prefers words of its own."""

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, DistilBertConfig

CLASSES, WORDS, LENGTH = 3, 60, 10


def new_model():
    """Return the same base everywhere, in the place of a download, with adapters around it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = DistilBertConfig(
            vocab_size=WORDS,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            max_position_embeddings=16,
            num_labels=CLASSES,
        )
        base = AutoModelForSequenceClassification.from_config(config)
        adapters = LoraConfig(
            task_type=TaskType.SEQ_CLS, r=4, lora_alpha=8, target_modules=["q_lin", "v_lin"]
        )
        return get_peft_model(base, adapters)


class Texts(Dataset):
    """Texts of which two thirds are of one class."""

    def __init__(self, partition_id: int, number: int = 48) -> None:
        generator = torch.Generator().manual_seed(partition_id)
        i = torch.arange(number)
        self.labels = torch.where(i % 3 > 0, partition_id % CLASSES, i // 3 % CLASSES)
        words = torch.randint(1, 20, (number, LENGTH), generator=generator)
        self.input_ids = words + 13 * self.labels.unsqueeze(1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return {
            "input_ids": self.input_ids[index],
            "attention_mask": torch.ones(LENGTH, dtype=torch.long),
            "labels": self.labels[index],
        }
