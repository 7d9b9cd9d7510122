"""PyTorch Lightning's Trainer around the nets and data of plain.py, where Lightning is installed.

python lightning_fit.py REQUEST.json
"""

import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import plain
import torch
import torch.nn.functional as F
from torch import nn


def main() -> None:
    name = next((name for name in ("lightning", "pytorch_lightning") if importlib.util.find_spec(name)), "")
    if not name:
        plain.skip("Lightning is not installed")
    lightning: Any = importlib.import_module(name)
    request = json.loads(Path(sys.argv[1]).read_text())
    recipe, epochs = request["recipe"], request["epochs"]
    lightning.seed_everything(request["seed"])
    train_loader, val_loader, test_loader = plain.read_loaders(request)
    seconds: list[float] = []

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain.net_for(train_loader, recipe["model"])
            self.criterion = nn.CrossEntropyLoss(label_smoothing=recipe["label_smoothing"])

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return self.criterion(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            optimizer = plain.build_optimizer(self.net, recipe["optim"])
            scheduler, every = plain.build_schedule(optimizer, recipe["schedule"], epochs, len(train_loader))
            if every == "plateau":
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": every}}

        def on_train_epoch_start(self) -> None:
            self.begun = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            self.ended = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            seconds.append(self.ended - self.begun)

    module = Classifier()
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="auto", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(module, train_loader, val_loader)
    accuracy = plain.evaluate(module.net.to(plain.DEVICE), test_loader)[1]
    line = {"peer": "Lightning", "seconds": time.perf_counter() - start, "epochs": epochs, "accuracy": accuracy}
    print(json.dumps({**line, "images": len(train_loader.dataset), "epoch_seconds": seconds}))


if __name__ == "__main__":
    main()
