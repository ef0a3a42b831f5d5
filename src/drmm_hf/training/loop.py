"""The training loop: a COCO-format data set to a saved, measured detector, through Accelerate."""

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import send_to_device, set_seed
from torch import Tensor
from tqdm.auto import tqdm

from ..image_processing_drmm import DrmmImageProcessor
from ..modeling_drmm import DrmmForObjectDetection
from .batches import normalize
from .checkpoints import Checkpoints
from .config import TrainConfig
from .evaluation_loop import evaluate_model
from .faults import Interrupts, TrainingStopped, batch_advice, explained_faults
from .loss_scale import batch_weights
from .metrics_log import MetricsLog, RunningMean
from .optimization import StepGuard, WeightAverage, build_optimizer, build_schedule
from .options import write_recipe
from .resume import checkpoint_to_resume, prepare_output, run_identity
from .setup import build_accelerator, build_model, build_transform, number_of_steps, open_source

logger = logging.getLogger(__name__)


@dataclass
class TrainResult:
    """What `train` leaves behind.

    Attributes:
        model_dir: folder with model and image processor, for `from_pretrained` and `pipeline`.
        metrics: the content of `metrics.json`; the COCO numbers are absent without an evaluation split.
        model, processor: the trained pair, on the device of the training.
    """

    model_dir: Path
    metrics: dict[str, Any]
    model: DrmmForObjectDetection
    processor: DrmmImageProcessor


def train(config: TrainConfig) -> TrainResult:
    """Train, save to `config.output`/model, evaluate, and write metrics.json, metrics.jsonl and recipe.yaml.

    The weights are in best/, too, where there were evaluations during the training: those of the highest AP.

    Raises:
        FileNotFoundError, ValueError: the data, the settings or the checkpoint are wrong; the message names the file or
            field. Nothing is written before the data have been read.
        TrainingStopped: too many steps without a finite gradient, too many unreadable images, a dead worker or
            process, or no memory.
        KeyboardInterrupt: Ctrl-C; a training of one process finishes its step and writes a checkpoint first.
        OSError: a checkpoint cannot be written; the previous one is intact.
    """
    return _Training(config).run()


class _Training:
    """One call of `train`."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.accelerator = build_accelerator(config)
        set_seed(config.seed)
        # Read everything that can be wrong before the minutes of training.
        self.source = open_source(config, self.accelerator)
        self.eval_dataset = self.source.evaluation_dataset() if config.eval_split else None
        self.model, self.processor = build_model(config, self.source)
        if config.gradient_checkpointing:
            # transformers has renamed it
            getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)()
        self.transform = build_transform(config, self.source, self.processor)
        self.images_per_step = config.batch_size * config.gradient_accumulation * self.accelerator.num_processes
        self.num_steps = number_of_steps(config, self.source.epoch_images, self.images_per_step)
        self.output = Path(config.output)
        self.checkpoints = Checkpoints(self.output / "checkpoints", config.save_total_limit)
        self.best: dict[str, float] = {}
        self.evaluations_without_gain = 0
        self.unreadable: dict[str, None] = {}
        self.bad_steps = 0
        self.current: list[dict[str, Any]] | None = None  # batches of the step, [] in an evaluation

    def run(self) -> TrainResult:
        self.identity = run_identity(self.model, self.source, self.config, self.images_per_step)
        resumed = checkpoint_to_resume(self.checkpoints, self.output, self.identity, self.config.resume)
        self.accelerator.wait_for_everyone()  # every process has looked before anything is changed
        if self.accelerator.is_main_process:
            prepare_output(self.output, self.checkpoints, keep=resumed is not None)
            write_recipe(self.config, self.output / "recipe.yaml")
        optimizer = build_optimizer(self.model, self.config)
        schedule = build_schedule(optimizer, self.config, self.num_steps, self._steps_of_epochs(1))
        if self.config.compile:
            self.model.model.compile(backend=self.config.compile, dynamic=True)
        self.prepared, self.optimizer, self.schedule = self.accelerator.prepare(self.model, optimizer, schedule)
        self.average = None
        if self.config.ema_decay is not None:
            self.average = WeightAverage(self.model, self.config.ema_decay)
        first_step, seconds, position = 0, 0.0, None
        if resumed is not None:
            path, progress = resumed
            self.checkpoints.load(path, self.accelerator, self.average)
            first_step, seconds, position = progress["step"], progress["train_seconds"], progress.get("position")
            self.best, self.bad_steps = progress["best"], progress["bad_steps"]
            self.evaluations_without_gain = progress["evaluations_without_gain"]
            self.unreadable = dict.fromkeys(progress.get("unreadable_images", ()))
        started = time.perf_counter() - seconds
        with explained_faults(self.config, self.accelerator.num_processes, self._memory_use):
            steps = self._optimize(first_step, position, started)
            return self._finish(steps, round(time.perf_counter() - started, 1))

    def _memory_use(self) -> str:
        """What is being computed, and what would make it smaller."""
        if self.current is None:
            return "while reading the first images: lower --num-workers or --shuffle-buffer"
        if not self.current:
            return f"while evaluating: lower --eval-batch-size (now {self.config.eval_batch_size})"
        return batch_advice(self.config, self.current, self.model.config)

    def _steps_of_epochs(self, epochs: float) -> float:
        return epochs * (self.source.epoch_images or math.nan) / self.images_per_step

    def _optimize(self, first_step: int, position: Any, started: float) -> int:
        """Train from `first_step` on; the number of steps that were done at the end."""
        config, accelerator = self.config, self.accelerator
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        guard = StepGuard(inner, accelerator.device, self.model)
        self.prepared.train()
        log = MetricsLog(self.output / "metrics.jsonl", first_step, accelerator, config.to_dict())
        batches = self.source.batches(self.transform, first_step, position)
        eval_steps = self._evaluation_steps()
        main = accelerator.is_main_process
        bar = tqdm(total=self.num_steps, initial=first_step, desc="training", unit="step", disable=not main)
        # of several processes, each would stop at another step
        interrupts = Interrupts().held(accelerator.num_processes == 1)
        window, window_start = RunningMean(), time.perf_counter()
        step = first_step
        with contextlib.closing(bar), contextlib.closing(log), interrupts as ctrl_c:
            for step in range(first_step + 1, self.num_steps + 1):
                self.current = self._next_batches(batches)
                window.add(*self._step(self.current, guard))
                bar.update()
                if step % config.log_every == 0 or step == self.num_steps:
                    rate = window.count * self.images_per_step / (time.perf_counter() - window_start)
                    line: dict[str, Any] = self._means(window)
                    line |= {"learning_rate": self.schedule.get_last_lr()[0], "images_per_second": round(rate, 2)}
                    self._stop_if_diverged(guard, step)
                    bar.set_postfix(loss=f"{line['loss']:.3f}" if line["loss"] is not None else "nan", refresh=False)
                    log.write(step, line)
                    window, window_start = RunningMean(), time.perf_counter()
                if step in eval_steps and step < self.num_steps:
                    if self._evaluate_and_keep_best(step, log):
                        break
                    window_start = time.perf_counter()
                due = step % config.save_every == 0 or step == self.num_steps if config.save_every else False
                if due or (config.save_every and ctrl_c.pending):
                    self._save_checkpoint(step, time.perf_counter() - started)
                if ctrl_c.pending:
                    raise KeyboardInterrupt(f"after step {step}")
        return step

    def _next_batches(self, batches: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        """The batches of the next step."""
        step_batches = [next(batches) for _ in range(self.config.gradient_accumulation)]
        for batch in step_batches:
            self._note_unreadable(batch.pop("skipped"))
        return step_batches

    def _step(self, batches: list[dict[str, Any]], guard: StepGuard) -> tuple[dict[str, Tensor], Tensor]:
        """One step of the optimizer; the loss and its terms, and whether the step was skipped (1 or 0)."""
        values = self._forward_backward(batches)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        bad = guard.check(norm)
        if self.config.mixed_precision == "fp16":  # there the GradScaler skips them
            guard.disarm()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model)
        return {**values, "grad_norm": norm}, bad

    def _note_unreadable(self, messages: list[str]) -> None:
        for message in messages:
            if message not in self.unreadable:
                self.unreadable[message] = None
                logger.warning("training image replaced: %s", message)
        if len(self.unreadable) > self.config.max_bad_images:
            raise TrainingStopped(
                f"{len(self.unreadable)} training images cannot be read, more than --max-bad-images "
                f"{self.config.max_bad_images}: {'; '.join(self.unreadable)}"
            )

    def _forward_backward(self, batches: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Gradients of one step; its loss and terms, detached."""
        weights = batch_weights(self.accelerator, batches, self.model.config)
        values: dict[str, Tensor] = {}
        for turn, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            last = turn == len(batches) - 1
            batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.prepared):
                mask = batch["pixel_mask"]
                pixels = normalize(batch["image"], mask, self.processor.image_mean, self.processor.image_std)
                outputs = self.prepared(pixel_values=pixels, pixel_mask=mask, labels=batch["labels"])
                loss = outputs.loss * weight
                self.accelerator.backward(loss)
            for name, value in {"loss": loss, **{k: v * weight for k, v in outputs.loss_dict.items()}}.items():
                values[name] = values.get(name, 0.0) + value.detach()
        return values

    def _means(self, window: RunningMean) -> dict[str, float | None]:
        names, means = window.take()
        if self.accelerator.num_processes > 1:
            means = self.accelerator.reduce(means, "mean")
        numbers = means.tolist()
        return {n: round(v, 5) if math.isfinite(v) else None for n, v in zip(names, numbers, strict=True)}

    def _stop_if_diverged(self, guard: StepGuard, step: int) -> None:
        bad, longest = guard.take()
        self.bad_steps += bad
        if bad and self.accelerator.is_main_process:
            logger.warning("step %d: %d steps without a finite gradient were skipped", step, bad)
        if longest >= self.config.max_bad_steps:
            raise TrainingStopped(
                f"{longest} steps in a row up to step {step} had no finite gradient; the weights are those before. "
                f"Lower --learning-rate (now {self.config.learning_rate:g})"
                + ("" if self.config.mixed_precision == "no" else ", or train with --mixed-precision no")
                + "."
            )

    def _evaluation_steps(self) -> set[int]:
        if self.eval_dataset is None:
            return set()
        every = self.config.eval_every
        steps = set(range(every, self.num_steps + 1, every)) if every else set()
        if self.config.eval_every_epochs:
            stride = self._steps_of_epochs(self.config.eval_every_epochs)
            steps |= {max(1, round(stride * i)) for i in range(1, int(self.num_steps / stride) + 1)}
        return steps

    def _trained_model(self) -> DrmmForObjectDetection:
        return self.model if self.average is None else self.average.model

    def _evaluate(self, results: Path) -> dict[str, Any]:
        assert self.eval_dataset is not None
        self.current = []
        return evaluate_model(
            self.accelerator,
            self._trained_model(),
            self.processor,
            self.eval_dataset,
            results,
            batch_size=self.config.eval_batch_size,
            num_workers=self.config.num_workers,
        )

    def _evaluate_and_keep_best(self, step: int, log: MetricsLog) -> bool:
        """Evaluate in the middle of the training; True if it should stop early."""
        metrics = self._evaluate(self.output / "results.json")
        log.write(step, {k: v for k, v in metrics.items() if not isinstance(v, str)})
        self._keep_best(metrics, step)
        patience = self.config.patience
        return patience is not None and self.evaluations_without_gain >= patience

    def _keep_best(self, metrics: dict[str, Any], step: int) -> None:
        self.evaluations_without_gain += 1
        if metrics["AP"] > self.best.get("AP", -2.0):
            self.best, self.evaluations_without_gain = {"AP": metrics["AP"], "step": step}, 0
            self._save_model(self.output / "best")

    def _save_model(self, folder: Path) -> None:
        if self.accelerator.is_main_process:
            self._trained_model().save_pretrained(folder)
            self.processor.save_pretrained(folder)

    def _save_checkpoint(self, step: int, seconds: float) -> None:
        progress = {
            "identity": self.identity,
            "train_seconds": round(seconds, 1),
            "best": self.best,
            "evaluations_without_gain": self.evaluations_without_gain,
            "bad_steps": self.bad_steps,
            "unreadable_images": list(self.unreadable),
            "position": self.source.position(),
        }
        self.checkpoints.save(self.accelerator, step, progress, self.average)

    def _finish(self, steps: int, seconds: float) -> TrainResult:
        metrics: dict[str, Any] = {
            "train_seconds": seconds,
            "train_steps": steps,
            "train_images": steps * self.images_per_step,
            "seed": self.config.seed,
            "bad_steps": self.bad_steps,
        }
        model_dir = self.output / "model"
        self._save_model(model_dir)
        if self.eval_dataset is not None:
            final = self._evaluate(self.output / "results.json")
            if self._evaluation_steps():
                self._keep_best(final, steps)
                metrics |= {"best_AP": self.best["AP"], "best_step": self.best["step"]}
            metrics = {**final, **metrics}
        if self.unreadable:
            metrics["unreadable_images"] = list(self.unreadable)
        if self.accelerator.is_main_process:
            (self.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        self.accelerator.wait_for_everyone()
        # not end_training(), which also ends the process group: a program may train again
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return TrainResult(model_dir, metrics, self._trained_model(), self.processor)
