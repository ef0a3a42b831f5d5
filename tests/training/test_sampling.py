"""The order of images: every process, accumulation and restart sees its part of one and the same sequence."""

from itertools import chain, islice

import pytest

from drmm_hf.training.sampling import TrainingOrder, sample_seed


def steps(order: TrainingOrder, count: int) -> list[list[tuple[int, int]]]:
    """The images of each step of one process."""
    batches = list(islice(order, count * order.accumulation))
    return [list(chain(*batches[i : i + order.accumulation])) for i in range(0, len(batches), order.accumulation)]


def test_an_epoch_shows_every_image_once() -> None:
    images = [item for batch in islice(TrainingOrder(12, 4, seed=0), 3) for item in batch]
    assert {epoch for epoch, _ in images} == {0}
    assert sorted(index for _, index in images) == list(range(12))


def test_the_remainder_is_left_out_but_differs_by_epoch() -> None:
    order = TrainingOrder(11, 4, seed=0)
    assert order.steps_per_epoch == 2
    seen = [
        {i for batch in epoch for _, i in batch} for epoch in (list(islice(order, 20))[k : k + 2] for k in (0, 2, 4))
    ]
    assert all(len(images) == 8 for images in seen)
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize(("num_processes", "batch_size", "accumulation"), [(2, 1, 1), (1, 1, 2), (4, 1, 1), (2, 1, 2)])
def test_a_step_has_the_same_images_however_it_is_divided(num_processes, batch_size, accumulation) -> None:
    size = num_processes * batch_size * accumulation
    whole = steps(TrainingOrder(13, size, seed=5), 9)
    parts = [
        steps(
            TrainingOrder(
                13, batch_size, 5, num_processes=num_processes, process_index=index, accumulation=accumulation
            ),
            9,
        )
        for index in range(num_processes)
    ]
    for step in range(9):
        assert sorted(item for part in parts for item in part[step]) == sorted(whole[step])


@pytest.mark.parametrize("first_step", [0, 1, 3, 4, 17])
def test_it_goes_on_where_it_stopped(first_step: int) -> None:
    fields = {"num_images": 10, "batch_size": 3, "seed": 2}
    whole = list(islice(TrainingOrder(**fields), 30))
    assert list(islice(TrainingOrder(**fields, first_step=first_step), 10)) == whole[first_step : first_step + 10]


def test_fewer_images_than_processes_are_repeated() -> None:
    orders = [TrainingOrder(3, 2, 0, num_processes=4, process_index=i) for i in range(4)]
    first = [next(iter(order)) for order in orders]
    assert all(len(batch) == 2 for batch in first)
    assert {order.steps_per_epoch for order in orders} == {1}
    assert [len(next(iter(TrainingOrder(1, 8, 0)))) for _ in range(2)] == [1, 1]


def test_batches_of_one_group() -> None:
    groups = [0, 1, 1, 0, 1, 1, 1, 0, 1]
    order = TrainingOrder(9, 2, 0, groups=groups)
    batches = list(islice(order, 4 * order.steps_per_epoch))
    assert order.steps_per_epoch == 4  # three pairs of six wide images, one pair of three tall ones
    for batch in batches:
        assert len({groups[index] for _, index in batch}) == 1
        assert len({index for _, index in batch}) == 2


def test_a_group_smaller_than_a_batch_is_not_lost() -> None:
    order = TrainingOrder(5, 2, 0, groups=[0, 0, 1, 0, 0])
    seen = {index for batch in islice(order, order.steps_per_epoch) for _, index in batch}
    assert seen == {0, 1, 2, 3, 4}


def test_seeds_of_samples_differ() -> None:
    seeds = {sample_seed(seed, epoch, index) for seed in range(4) for epoch in range(4) for index in range(50)}
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images to train on"):
        TrainingOrder(0, 2, 0)
