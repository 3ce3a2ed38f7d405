"""The clients' side."""

import tempfile

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import Trainer, TrainingArguments

from lora.task import Texts, new_model

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    model = new_model()
    set_peft_model_state_dict(model, msg.content["arrays"].to_torch_state_dict())
    texts = Texts(context.node_config["partition-id"])

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=context.run_config["local-epochs"],
            learning_rate=context.run_config["learning-rate"],
            per_device_train_batch_size=16,
            seed=msg.content["config"]["server-round"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=texts)
        result = trainer.train()

    metrics = {"train_loss": result.training_loss, "num-examples": len(texts)}
    adapters = get_peft_model_state_dict(model)
    content = RecordDict({"arrays": ArrayRecord(adapters), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=msg)
