"""The training loop: a data set to a saved, measured detector, through Accelerate."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object, set_seed
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from ..data import DetectionDataset
from ..files import make_output_folder, write_json, writing
from ..image_processing_drmm import DrmmImageProcessor
from ..modeling_drmm import DrmmForObjectDetection
from ..modeling_drmm_detr import DrmmDetrForObjectDetection
from .checkpoints import DEPLOYED, Checkpoints, identity, keep_lines
from .config import TrainConfig, write_recipe
from .faults import TrainingStopped, explained_faults, signals_held, sizes
from .optim import (
    StepGuard,
    UselessSteps,
    batch_weights,
    build_optimizer,
    build_schedule,
    scale_floor,
    set_rates,
    weight_average,
)
from .setup import (
    build_accelerator,
    build_model,
    build_transform,
    check_training_data,
    evaluate,
    evaluation_steps,
    model_inputs,
    open_data,
)

logger = logging.getLogger(__name__)

# Of the batches of a step, known without waiting for the device.
_COUNTS = ("objects", "dropped_boxes")


@dataclasses.dataclass
class TrainResult:
    """What `train` leaves behind.

    Attributes:
        model_dir: folder with model and image processor, for `from_pretrained` and `pipeline`.
        metrics: the content of `metrics.json`; the COCO numbers are absent without an evaluation split.
        model, processor: the trained pair, on the device of the training.
        eval_dataset: the split that was evaluated, if one was.
        deployed_dir: where D-RMM was put on a detector of transformers, the folder of that detector by itself, which
            needs nothing of this package; else None.
    """

    model_dir: Path
    metrics: dict[str, Any]
    model: DrmmForObjectDetection
    processor: DrmmImageProcessor
    eval_dataset: DetectionDataset | None = None
    deployed_dir: Path | None = None


def train(config: TrainConfig) -> TrainResult:
    """Train, save to `config.output`/model, evaluate, and write metrics.json, metrics.jsonl and recipe.yaml.

    The weights are in best/, too, where there were evaluations during the training: those of the highest AP.

    Raises:
        FileNotFoundError, ValueError: the data, the settings or the checkpoint are wrong, or the output folder holds a
            training and `config` says neither `resume` nor `overwrite`; the message names the file or field. Nothing is
            written before the data have been read.
        TrainingStopped: too many steps from which nothing can be learned, too many unreadable images, a lost process,
            or no memory.
        KeyboardInterrupt: Ctrl-C; a training of one process finishes its step and writes a checkpoint first.
        OSError: a process that reads images has died, or a checkpoint cannot be written; the previous one is intact.
    """
    training = _Training(config)
    training.prepare()
    with explained_faults(training.accelerator.num_processes, config.timeout, lambda: training.doing):
        training.optimize()
        return training.finish()


class _Training:
    """One call of `train`: `progress` is all that a resumed run needs besides weights, optimizer and schedule."""

    def __init__(self, config: TrainConfig):
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # by accelerate launch
        if config.mixed_precision == "no" and launched != "no":
            config = dataclasses.replace(config, mixed_precision=cast(Any, launched))
        self.config = config
        self.output = Path(config.output)
        self.checkpoints = Checkpoints(self.output, config.save_total_limit)
        # Read everything that can be wrong before the minutes of training.
        self.checkpoints.refuse_others(config)
        self.accelerator = build_accelerator(config)
        set_seed(config.seed)
        self.data = open_data(config, self.accelerator)
        epoch_images = self.data.epoch_images
        self.eval_dataset = self.data.evaluation_dataset() if config.eval_split else None
        self.model, self.processor = build_model(config, self.data.id2label, self.data.label2id)
        start, floor = config.min_scale_ratio_start, self.model.config.min_scale_ratio
        if start is not None and not 0 < floor <= start:
            raise ValueError(f"min_scale_ratio_start={start} has to come down to the model's min_scale_ratio={floor}")
        self.transform = build_transform(config, self.data.landscape_share, self.processor)
        self.images_per_step = config.batch_size * config.gradient_accumulation * self.accelerator.num_processes
        self.steps_per_epoch = (epoch_images or math.nan) / self.images_per_step
        images = config.train_images or (config.epochs or 0) * (epoch_images or 0)
        self.num_steps = max(1, round(images / self.images_per_step))
        self.eval_steps = evaluation_steps(config, self.num_steps, self.steps_per_epoch)
        self.identity = identity(config, self.images_per_step, self.data, self.model.config)
        self.progress: dict[str, Any] = {
            "step": 0,
            "train_seconds": 0.0,
            "best": {},
            "evaluations_without_gain": 0,
            "bad_steps": 0,
            "unreadable_images": [],
            "position": None,
        }
        self.average: AveragedModel | None = None
        self.useless = UselessSteps(config)
        self.doing = "while reading the first images: lower --num-workers or --shuffle-buffer"

    @property
    def trained_model(self) -> DrmmForObjectDetection:
        """What is evaluated and saved: the model, or the average of its weights."""
        return self.model if self.average is None else cast(DrmmForObjectDetection, self.average.module)

    def prepare(self) -> None:
        """The output folder, and everything that Accelerate wraps, at the beginning or where a checkpoint says."""
        config, accelerator = self.config, self.accelerator
        resumed = self.checkpoints.to_resume(self.identity) if config.resume else None
        checked = None
        if resumed is None:
            checked = check_training_data(self.data, self.eval_dataset, self.model, self.processor, accelerator)
        optimizer = build_optimizer(self.model, config)
        self.main_group = [group["lr"] for group in optimizer.param_groups].index(config.learning_rate)
        schedule = build_schedule(optimizer, config, self.num_steps, self.steps_per_epoch)
        if config.gradient_checkpointing:
            # transformers has renamed it
            getattr(self.model, "activation_checkpointing_enable", self.model.gradient_checkpointing_enable)()
        if config.compile:
            self.model.model.compile(backend=config.compile, dynamic=True)
        self.prepared, self.optimizer, self.schedule = accelerator.prepare(self.model, optimizer, schedule)
        if config.ema_decay is not None:
            self.average = weight_average(self.model, config.ema_decay)
        if resumed is not None:
            path, progress = resumed
            given = [{**group, "params": ()} for group in optimizer.param_groups]
            self.checkpoints.load(path, accelerator, self.average)
            set_rates(optimizer, schedule, given)
            self.progress = {name: progress[name] for name in self.progress}
        accelerator.wait_for_everyone()  # every process has looked before anything is changed
        if accelerator.is_main_process:
            make_output_folder(str(self.output))
            self.checkpoints.claim()
            if resumed is None:
                self.checkpoints.begin_anew()
            write_recipe(config, self.output / "recipe.yaml")
            if checked is not None:
                write_json(self.output / "data_report.json", checked)
            keep_lines(self.output / "metrics.jsonl", self.progress["step"])
        if accelerator.log_with:
            plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in config.to_dict().items()}
            accelerator.init_trackers("drmm-hf", config=plain)

    def optimize(self) -> None:
        """Train to the last step, or until nothing gets better."""
        config, progress, accelerator = self.config, self.progress, self.accelerator
        first_step, started = progress["step"], time.perf_counter() - progress["train_seconds"]
        last_step = first_step if self._no_better() else self.num_steps  # resumed, it may have stopped already
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        guard = StepGuard(optimizer, self.model, armed=config.mixed_precision != "fp16")  # GradScaler does it there
        batches = self.data.batches(self.transform, first_step, progress["position"])
        window: list[dict[str, Any]] = []
        window_start = time.perf_counter()
        main = accelerator.is_main_process
        bar = tqdm(total=self.num_steps, initial=first_step, desc="training", unit="step", disable=not main)
        # of several processes, each would stop at another step
        with bar, signals_held(accelerator.num_processes == 1) as interrupted:
            self.prepared.train()
            for step in range(first_step + 1, last_step + 1):
                window.append(self._step(batches, guard))
                progress["step"] = step
                bar.update()
                last = step == last_step
                save = last or step % (config.save_every or math.inf) == 0 or interrupted.is_set()
                if step % config.log_every == 0 or save or step in self.eval_steps:
                    rate = len(window) * self.images_per_step / (time.perf_counter() - window_start)
                    line = self._summary(window)
                    self._log(line | {"images_per_second": round(rate, 2)})
                    bar.set_postfix(loss=line["loss"], refresh=False)
                    window, window_start = [], time.perf_counter()
                if step in self.eval_steps and not last:
                    metrics = self._evaluate()
                    self._log({name: value for name, value in metrics.items() if not isinstance(value, str)})
                    self._keep_best(metrics)
                    last = self._no_better()
                    window_start = time.perf_counter()
                progress["train_seconds"] = round(time.perf_counter() - started, 1)
                if config.save_every and (save or last):
                    progress |= {"position": self.data.position(), "identity": self.identity}
                    self.checkpoints.save(accelerator, progress, self.average)
                if last or (save and interrupted.is_set()):
                    break
            if interrupted.is_set():
                raise KeyboardInterrupt(f"after step {progress['step']}")
        progress["train_seconds"] = round(time.perf_counter() - started, 1)

    def _no_better(self) -> bool:
        return self.progress["evaluations_without_gain"] >= (self.config.patience or math.inf)

    def _step(self, batches: Iterator[dict[str, Any]], guard: StepGuard) -> dict[str, Any]:
        """One step of the optimizer.

        Returns:
            Loss and terms, `grad_norm` and `bad` (1 if the step was skipped, else 0) as tensors on the device, and the
            `_COUNTS` of this process.
        """
        config, accelerator = self.config, self.accelerator
        step_batches = [next(batches) for _ in range(config.gradient_accumulation)]
        self._note_unreadable([message for batch in step_batches for message in batch["skipped"]])
        self.doing = sizes(step_batches, config, self.model.config)
        weights = batch_weights(accelerator, step_batches, self.model.config)
        done = (self.progress["step"] + 1) / self.num_steps
        values: dict[str, Any] = {}
        for turn, (batch, weight) in enumerate(zip(step_batches, weights, strict=True), 1):
            inputs = model_inputs(self.processor, batch["images"], batch["annotations"], accelerator.device)
            last = turn == len(step_batches)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.prepared):
                with scale_floor(self.model.config, config.min_scale_ratio_start, done):
                    outputs = self.prepared(**inputs)
                accelerator.backward(outputs.loss * weight)
            # which terms a detector's own loss has differs between batches with and without objects
            terms = {} if self.model.config.objective == "native" else outputs.loss_dict
            for name, value in {"loss": outputs.loss, **terms}.items():
                values[name] = values.get(name, 0.0) + value.detach() * weight
        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        bad = guard.check(norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        counts = {name: sum(batch[name] for batch in step_batches) for name in _COUNTS}
        return {**values, "grad_norm": norm, "bad": bad, **counts}

    def _summary(self, window: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Means over the steps with a finite gradient and the processes (None where there is none), and sums of counts.

        The only place that waits for the device, once.

        Raises:
            TrainingStopped: nothing can be learned from the last steps.
        """
        names = list(window[0])[: -len(_COUNTS)]
        values = torch.stack([torch.stack([step[name].float() for name in names]) for step in window])
        counts = torch.tensor([[float(step[name]) for name in _COUNTS] for step in window], device=values.device)
        table = self.accelerator.reduce(torch.cat([values, counts], dim=1), "mean").cpu()
        norms, bad, *totals = table[:, len(names) - 2 :].T
        totals = [total * self.accelerator.num_processes for total in totals]
        last = self.progress["step"]
        for step, norm, *of_step in zip(range(last - len(window) + 1, last + 1), norms, bad, *totals, strict=True):
            if reason := self.useless.add(float(norm), *map(round, map(float, of_step))):
                raise TrainingStopped(f"Step {step}: {reason}")
        skipped = int(bad.sum())
        if skipped and self.accelerator.is_main_process:
            logger.warning("step %d: %d steps without a finite gradient were skipped", last, skipped)
        self.progress["bad_steps"] += skipped
        means = table[bad == 0, : len(names) - 1].mean(dim=0).tolist()
        line = {n: round(v, 5) if math.isfinite(v) else None for n, v in zip(names[:-1], means, strict=True)}
        line["learning_rate"] = self.schedule.get_last_lr()[self.main_group]
        return line | {name: round(float(total.sum())) for name, total in zip(_COUNTS, totals, strict=True)}

    def _log(self, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; the numbers in it go to the trackers as well."""
        step = self.progress["step"]
        if self.accelerator.is_main_process:
            path = self.output / "metrics.jsonl"
            with writing(path), path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(_numbers(values), step=step)

    def _note_unreadable(self, messages: Sequence[str]) -> None:
        known = self.progress["unreadable_images"]
        for message in messages:
            if message not in known:
                known.append(message)
                logger.warning("training image replaced: %s", message)
        if len(known) > self.config.max_bad_images:
            raise TrainingStopped(
                f"{len(known)} training images cannot be read, more than --max-bad-images "
                f"{self.config.max_bad_images}: {'; '.join(known)}"
            )

    def _evaluate(self) -> dict[str, Any]:
        self.doing = f"while evaluating: lower --eval-batch-size (now {self.config.eval_batch_size})"
        assert self.eval_dataset is not None
        return evaluate(self.trained_model, self.processor, self.eval_dataset, self.accelerator, self.config)

    def _keep_best(self, metrics: Mapping[str, Any]) -> None:
        self.progress["evaluations_without_gain"] += 1
        if metrics["AP"] > self.progress["best"].get("AP", -2.0):
            self.progress["best"] = {"AP": metrics["AP"], "step": self.progress["step"]}
            self.progress["evaluations_without_gain"] = 0
            self._save_model("best")
            if self.accelerator.is_main_process:
                write_json(self.output / "best" / "metrics.json", dict(metrics))

    def _save_model(self, name: str) -> None:
        """The weights and the processor; of D-RMM on a stock detector, that detector by itself beside them, too."""
        if self.accelerator.is_main_process:
            models = {name: self.trained_model}
            if isinstance(self.trained_model, DrmmDetrForObjectDetection):
                models[DEPLOYED[name]] = self.trained_model.detector
            for folder, model in models.items():
                with writing(self.output / folder):
                    model.save_pretrained(self.output / folder)
                    self.processor.save_pretrained(self.output / folder)

    def finish(self) -> TrainResult:
        """Save and evaluate what has been trained."""
        progress = self.progress
        self._save_model("model")
        metrics = {} if self.eval_dataset is None else self._evaluate() | {"eval_images": len(self.eval_dataset)}
        metrics |= {
            "train_seconds": progress["train_seconds"],
            "train_steps": progress["step"],
            "train_images": progress["step"] * self.images_per_step,
            "seed": self.config.seed,
            "bad_steps": progress["bad_steps"],
        }
        if self.eval_steps:
            self._keep_best(metrics)
            metrics |= {"best_AP": progress["best"]["AP"], "best_step": progress["best"]["step"]}
        if unreadable := sorted({*gather_object(progress["unreadable_images"])}):
            metrics["unreadable_images"] = unreadable
        self.accelerator.log(_numbers(metrics), step=progress["step"])
        if self.accelerator.is_main_process:
            write_json(self.output / "metrics.json", metrics)
        self.accelerator.wait_for_everyone()
        # not end_training(), which also ends the process group: a program may train again
        for tracker in self.accelerator.trackers:
            tracker.finish()
        deployed = self.output / DEPLOYED["model"]
        return TrainResult(
            self.output / "model",
            metrics,
            self.trained_model,
            self.processor,
            self.eval_dataset,
            deployed if isinstance(self.trained_model, DrmmDetrForObjectDetection) else None,
        )


def _numbers(values: Mapping[str, Any]) -> dict[str, int | float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
